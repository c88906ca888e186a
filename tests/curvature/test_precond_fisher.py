"""The diagonal of the empirical Fisher matrix against loops over single examples in float64."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dense_oracle import relative
from precond_cases import CLASSES, INPUTS, ROWS, TIGHT, by_loop, generator, inputs, labels, network
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.preconditioners import EmpiricalFisher, example_gradients

WEIGHT = torch.tensor([0.3, 1.0, 2.0, 0.0], dtype=torch.float64)


def diagonal(model, loss, data, *, chunk=None, curvature="ggn", **options: Any) -> Tensor:
    curved = linearize(Objective(model, loss, data, **options), curvature)
    estimate = EmpiricalFisher(chunk=chunk).estimate(curved, [curved.space.size])
    assert list(estimate) == ["diagonal"]
    return estimate["diagonal"]


# ---------------------------------------------------------------------------------------------------------------------
# Weights: f = scale * sum of S_i, and D = scale * sum of S_i'^2 / (weight of a term in S_i)

Y = labels(ROWS)
IGNORED = torch.where(torch.arange(ROWS) % 4 == 1, -100, Y)
BY_CLASS = WEIGHT[Y]
REAL = inputs(ROWS, CLASSES).cos()
ONES = torch.ones(ROWS, dtype=torch.float64)
COUNTED = (IGNORED != -100).double()
INVERSE = torch.where(BY_CLASS > 0, 1 / BY_CLASS.clamp(min=1e-300), 0.0)
SHARES = torch.rand(ROWS, CLASSES, generator=generator(5), dtype=torch.float64).softmax(1)


def mine(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that does not say how it reduces."""
    return (outputs - targets).abs().pow(1.5).sum(1).mean()


def mine_summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().pow(1.5).sum()


TOTAL_CE = functools.partial(F.cross_entropy, reduction="sum")
WEIGHED_CE = functools.partial(F.cross_entropy, reduction="sum", weight=WEIGHT)
TOTAL_MSE = functools.partial(F.mse_loss, reduction="sum")
TOTAL_BCE = functools.partial(F.binary_cross_entropy_with_logits, reduction="sum")
CASES = {
    "cross entropy": (nn.CrossEntropyLoss(), Y, TOTAL_CE, ONES / ROWS),
    "functional": (F.cross_entropy, Y, TOTAL_CE, ONES / ROWS),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), Y, TOTAL_CE, ONES),
    "ignored": (nn.CrossEntropyLoss(), IGNORED, TOTAL_CE, COUNTED / COUNTED.sum()),
    "ignored, summed": (nn.CrossEntropyLoss(reduction="sum"), IGNORED, TOTAL_CE, COUNTED),
    "weights": (nn.CrossEntropyLoss(WEIGHT), Y, WEIGHED_CE, INVERSE / BY_CLASS.sum()),
    "weights, summed": (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), Y, WEIGHED_CE, INVERSE),
    "smoothing": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        Y,
        functools.partial(TOTAL_CE, label_smoothing=0.1),
        ONES / ROWS,
    ),
    "probabilities": (nn.CrossEntropyLoss(), SHARES, TOTAL_CE, ONES / ROWS),
    "squared error": (nn.MSELoss(), REAL, TOTAL_MSE, ONES / (ROWS * CLASSES)),
    "squared error, summed": (nn.MSELoss(reduction="sum"), REAL, TOTAL_MSE, ONES),
    "binary": (nn.BCEWithLogitsLoss(), SHARES, TOTAL_BCE, ONES / (ROWS * CLASSES)),
    "own mean": (mine, REAL, mine, ONES / ROWS),
    "own sum": (mine_summed, REAL, mine, ONES),
}


@pytest.fixture(params=["dense layers", "vmap", "one by one"])
def way(request, monkeypatch) -> str:
    """The three ways in which squares are found, each forced on all parameters."""
    if request.param != "dense layers":
        monkeypatch.setattr(example_gradients, "dense_squares", lambda *arguments: {})
    if request.param == "one by one":
        monkeypatch.setattr(example_gradients, "_at_once", example_gradients._one_by_one)
    return request.param


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_every_loss_against_a_loop(way, case, chunk):
    loss, targets, total, factors = CASES[case]
    x, model = inputs(ROWS, INPUTS), network()
    expected = by_loop(model, total, x, targets, factors)
    assert relative(diagonal(model, loss, (x, targets), chunk=chunk), expected) < TIGHT


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith("own")])
def test_chunks_are_the_whole(way, case):
    loss, targets, _, _ = CASES[case]
    x, model = inputs(ROWS, INPUTS), network()
    whole = diagonal(model, loss, (x, targets), weight_decay=0.1)
    chunked = diagonal(model, loss, (x, targets), weight_decay=0.1, microbatch_size=4, chunk=3)
    assert relative(chunked, whole) < TIGHT


def test_a_chunk_without_targets_that_count_adds_zero(way):
    x, y, model = inputs(ROWS, INPUTS), Y.clone(), network()
    y[:4] = -100
    whole = diagonal(model, nn.CrossEntropyLoss(), (x, y))
    assert whole.isfinite().all()
    assert relative(diagonal(model, nn.CrossEntropyLoss(), (x, y), microbatch_size=4), whole) < TIGHT


def test_several_chunks_need_the_reduction():
    with pytest.raises(ValueError, match="reduction"):
        diagonal(network(), mine, (inputs(ROWS, INPUTS), REAL), microbatch_size=4)


def test_the_l2_term_adds_its_coefficient():
    data, model = (inputs(ROWS, INPUTS), Y), network()
    bare = diagonal(model, nn.CrossEntropyLoss(), data)
    decayed = diagonal(
        model, nn.CrossEntropyLoss(), data, weight_decay=(0.3, lambda name, parameter: parameter.dim() > 1)
    )
    expected = torch.cat([torch.full_like(p, 0.3 if p.dim() > 1 else 0.0).reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(decayed - bare, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["squared error", "sequences"])
def test_with_targets_of_the_model_it_is_the_diagonal_of_the_ggn(kind, reduction):
    """Then the Fisher matrix is the Gauss-Newton matrix, also where an example has several terms.

    With 20,000 examples the sum of squares has a standard error of about sqrt(2/20000) = 1%, and five times that is
    allowed for the worst of some tens of entries.
    """
    rows, positions = 20_000, 3
    torch.manual_seed(3)
    if kind == "squared error":
        model, x = nn.Linear(2, 5).double(), torch.randn(rows, 2, dtype=torch.float64)
        y = model(x).detach() + 0.5**0.5 * torch.randn(rows, 5, dtype=torch.float64)  # the density exp(-(z - y)^2)
        loss = nn.MSELoss(reduction=reduction)
    else:
        model, x = nn.Conv1d(2, 3, 1).double(), torch.randn(rows, 2, positions, dtype=torch.float64)
        y = torch.distributions.Categorical(logits=model(x).detach().movedim(1, -1)).sample()
        loss = nn.CrossEntropyLoss(reduction=reduction)
    curved = linearize(Objective(model, loss, (x, y)))
    size = curved.space.size
    exact = torch.stack([curved.quadratic_form(unit) for unit in torch.eye(size, dtype=torch.float64)])
    found = EmpiricalFisher().estimate(curved, [size])["diagonal"]
    assert float((found / exact - 1).abs().max()) < 0.05
