"""`latephase.check` on losses that differentiate, mask, count, or write their data."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latephase import HessianFree, Objective, check

RANDOM = torch.Generator().manual_seed(0)
X, Y = torch.randn(16, 3, generator=RANDOM), torch.randn(16, 3, generator=RANDOM)
HOLES = Y.masked_fill(torch.rand(16, 3, generator=RANDOM) < 0.2, float("nan"))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))


def slope(model, x):
    """Derivatives in the inputs, as physics-informed losses take them, without an enable_grad of its own."""
    x = x.clone().requires_grad_()
    outputs = model(x)
    (found,) = torch.autograd.grad(outputs.sum(), x, create_graph=True)
    return found + outputs


def slope_in_loss(outputs, targets):
    (found,) = torch.autograd.grad(outputs["u"].sum(), outputs["x"], create_graph=True)
    return (found - targets).square().mean()


def with_inputs(model, x):
    x = x.clone().requires_grad_()
    return {"u": model(x), "x": x}


def test_a_forward_that_differentiates_is_checked_like_any():
    report = check(network(), nn.MSELoss(), (X, Y), forward=slope)
    assert report.ok
    assert report.finding("reduction").severity == "ok"


def test_a_loss_that_differentiates_one_output_in_another_is_told_where_to_do_it():
    report = check(network(), slope_in_loss, (X, Y), forward=with_inputs)
    assert report.finding("loss").severity == "ok"
    assert "do it in `forward`" in report.finding("gradient").message


def test_a_loss_that_differentiates_inside_itself():
    def loss(outputs, targets):
        point = outputs.detach().requires_grad_()
        (force,) = torch.autograd.grad(point.pow(4).sum(), point)
        return (outputs - targets - 0.01 * force).square().mean()

    assert check(network(), loss, (X, Y)).finding("loss").severity == "ok"


def masked(outputs, targets):
    seen = ~targets.isnan()
    return ((outputs - targets.nan_to_num()).square() * seen).sum() / seen.sum()


def test_values_that_the_loss_leaves_out_are_no_defect():
    report = check(network(), masked, (X, HOLES))
    assert report.ok
    assert report.finding("data").severity == "note"
    assert "left out" in report.finding("data").message
    assert "data" in [finding.name for finding in check(network(), nn.MSELoss(), (X, HOLES)).of_severity("defect")]


def test_a_declared_count_makes_the_parts_add_up():
    def loss(outputs, targets):
        return masked(outputs, targets)

    loss.reduction = "mean"
    report = check(network(), loss, (X, HOLES))
    assert report.finding("reduction").severity == "defect"
    assert "loss.normalizer" in report.finding("reduction").message
    loss.normalizer = lambda targets: (~targets.isnan()).sum()
    assert check(network(), loss, (X, HOLES), microbatch_size=5).ok


def test_a_tensor_that_a_free_forward_writes_is_named_and_put_back():
    model, x = network(), X.clone()

    def forward():
        x.mul_(0.5)
        outputs = model(x)
        return outputs.square().mean(), outputs

    report = check(Objective.from_forward(model, forward))
    assert torch.equal(x, X)
    message = report.finding("determinism").message
    assert "a tensor of shape [16, 3]" in message
    assert "written in place" in message
    assert "clock" not in message


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (nn.CTCLoss(), "CTCLoss takes .*input_lengths"),
        (nn.CosineEmbeddingLoss(), "CosineEmbeddingLoss takes"),
        (nn.TripletMarginLoss(), "TripletMarginLoss takes"),
        (F.gaussian_nll_loss, "gaussian_nll_loss takes"),
        (lambda outputs: outputs.mean(), "too many positional arguments"),
    ],
)
def test_a_loss_of_other_arguments_is_refused_with_the_remedy(loss, words):
    with pytest.raises(TypeError, match=f"{words}.*def loss"):
        Objective(network(), loss, (X, Y))


def aligned(outputs, targets):
    lengths = torch.full((len(targets),), 8), torch.full((len(targets),), 3)
    return F.ctc_loss(outputs.transpose(0, 1).log_softmax(2), targets, *lengths)


@pytest.mark.parametrize(
    ("loss", "batch"),
    [
        (aligned, (torch.randn(4, 8, 3), torch.randint(1, 3, (4, 3)))),
        (nn.MultiMarginLoss(), (X, torch.zeros(16, dtype=torch.int64))),
        (nn.MultiLabelMarginLoss(), (X, torch.zeros(16, 3, dtype=torch.int64))),
    ],
    ids=["ctc", "margin", "labels"],
)
@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_a_loss_without_a_second_derivative_is_named(loss, batch, curvature):
    model = network()
    with pytest.raises(RuntimeError, match=r"second derivative|or the loss, can be"):
        HessianFree(model.parameters(), curvature=curvature).step(Objective(model, loss, batch))
    assert "second derivative" in check(model, loss, batch).finding("products").message
