"""Chunks and ranks of a loss of one's own are weighed exactly, or refused: masks, weights, roots, wrong words."""

import functools
import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from latephase import HessianFree, Objective
from rank_processes import results_of_ranks

ROWS, CLASSES, LENGTH = 12, 5, 7
GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(ROWS, 3, generator=GENERATOR)
REALS = torch.randn(ROWS, 4, generator=GENERATOR)
LABELS = torch.randint(4, (ROWS,), generator=GENERATOR)
TOKENS = torch.randint(CLASSES, (ROWS, LENGTH), generator=GENERATOR)
HOLES = REALS.masked_fill(torch.rand(ROWS, 4, generator=GENERATOR) < 0.3, float("nan"))
IGNORED = torch.where(torch.arange(ROWS) < 3, -100, LABELS)
TOKENS_IGNORED = torch.where(torch.arange(LENGTH) < torch.arange(ROWS)[:, None] % 6, -100, TOKENS)
SAMPLE_WEIGHTS = torch.rand(ROWS, 1, generator=GENERATOR) * 5
WEIGHED = torch.cat([REALS, SAMPLE_WEIGHTS], 1)


def said(reduction, function, normalizer=None):
    """A loss of one's own, new each time, with what it says of itself."""

    def loss(outputs, targets):
        return function(outputs, targets)

    if reduction is not None:
        loss.reduction = reduction
    if normalizer is not None:
        loss.normalizer = normalizer
    return loss


def tokens(outputs, targets):
    return F.cross_entropy(outputs.reshape(-1, CLASSES), targets.reshape(-1), ignore_index=-100)


def holes(outputs, targets):
    return (outputs - targets)[~targets.isnan()].square().mean()


def clamped(outputs, targets):
    mask = ~targets.isnan()
    return ((outputs - targets.nan_to_num()).square() * mask).sum() / mask.sum().clamp(min=1)


def weighed(outputs, targets):
    return (targets[:, 4:] * (outputs - targets[:, :4]).square()).sum() / targets[:, 4:].sum()


def focal(outputs, targets):
    losses = F.cross_entropy(outputs, targets, reduction="none", ignore_index=-100)
    return losses.square().sum() / (targets != -100).sum()


class Focal(nn.CrossEntropyLoss):
    """Torch's class by name, another loss by what it computes."""

    def forward(self, outputs, targets):
        return focal(outputs, targets)


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return {"logits": self.inner(x), "nothing": None}


def network(outputs=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, outputs))


def reader():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(CLASSES, 8), nn.Linear(8, CLASSES))


COUNTED = {  # model, data, loss, what its mean divides by
    "tokens": (reader, (TOKENS, TOKENS_IGNORED), tokens, lambda o, t: (t != -100).sum()),
    "holes": (network, (X, HOLES), holes, lambda o, t: (~t.isnan()).sum()),
    "clamped": (network, (X, HOLES), clamped, lambda o, t: (~t.isnan()).sum()),
    "weighed": (network, (X, WEIGHED), weighed, lambda targets: targets[:, 4:].sum()),
    "focal": (network, (X, IGNORED), focal, lambda targets: int((targets != -100).sum())),
    "dictionary": (
        Dictionary,
        (X, IGNORED),
        lambda o, t: F.cross_entropy(o["logits"], t),
        lambda o, t: (t != -100).sum(),
    ),
}


def loss_and_gradient(objective):
    loss = objective()
    return torch.cat([loss.reshape(1), *(p.grad.reshape(-1) for p in objective.model.parameters())])


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("name", COUNTED)
def test_a_mean_that_says_what_it_divides_by_is_exact_in_chunks(name, size):
    make, data, function, normalizer = COUNTED[name]
    loss, model = said("mean", function, normalizer), make()
    whole, cut = Objective(model, loss, data), Objective(model, loss, data, microbatch_size=size)
    torch.testing.assert_close(loss_and_gradient(cut), loss_and_gradient(whole), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cut.value(), function(model(data[0]), data[1]).detach(), rtol=1e-5, atol=0)
    without = said(None, function, normalizer)  # saying what a mean divides by is saying that it is one
    torch.testing.assert_close(Objective(model, without, data, microbatch_size=size).value(), cut.value())


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("name", COUNTED)
def test_a_mean_over_something_unsaid_is_refused_with_both_values(name, size):
    make, data, function, _ = COUNTED[name]
    model = make()
    objective = Objective(model, said("mean", function), data, microbatch_size=size)
    for action in (objective.value, objective, lambda: HessianFree(model.parameters()).step(objective)):
        with pytest.raises(ValueError, match=r"loss\.normalizer"):
            action()
    whole = float(Objective(model, said("mean", function), data).value())
    with pytest.raises(ValueError, match=re.escape(f"{whole:.8g}"[:6])):
        objective.value()


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (said("mean", lambda o, t: F.mse_loss(o, t).sqrt()), REALS),
        (said("mean", lambda o, t: (o - t).abs().sum()), REALS),
        (said("sum", lambda o, t: (o - t).abs().mean()), REALS),
        (said("mean", lambda o, t: (o - t).square().amax()), REALS),
        (said("mean", lambda o, t: F.mse_loss(o - o.mean(0), t)), REALS),
        (Focal(), IGNORED),
        (functools.partial(F.binary_cross_entropy_with_logits, weight=SAMPLE_WEIGHTS), REALS.sigmoid()),
    ],
    ids=["root", "sum as mean", "mean as sum", "largest", "centred", "subclass", "weights of rows"],
)
def test_what_does_not_add_up_is_refused(loss, targets):
    with pytest.raises(ValueError, match=r"normalizer|rows of its own"):
        Objective(network(), loss, (X, targets), microbatch_size=5).value()


def test_a_batch_without_masked_targets_does_not_vouch_for_the_next():
    loss, model = said("mean", lambda o, t: F.cross_entropy(o, t)), network()
    torch.testing.assert_close(
        Objective(model, loss, (X, LABELS), microbatch_size=5).value(), F.cross_entropy(model(X), LABELS).detach()
    )
    with pytest.raises(ValueError, match="normalizer"):
        Objective(model, loss, (X, IGNORED), microbatch_size=5).value()


@pytest.mark.parametrize(("function", "targets"), [(F.cross_entropy, IGNORED), (holes, HOLES * 0)])
def test_equal_losses_hide_no_wrong_weight(function, targets):
    """Where every example has the same loss, any weights give its value."""
    model = nn.Linear(3, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with pytest.raises(ValueError, match="normalizer"):
        Objective(model, said("mean", lambda o, t: function(o, t)), (X, targets), microbatch_size=5).value()


def test_rows_of_a_saturated_softmax_are_no_reason_to_refuse():
    model = network()
    loss = said("mean", lambda o, t: F.cross_entropy(50 * o, t))
    value = Objective(model, loss, (X, model(X).argmax(1)), microbatch_size=1).value()
    torch.testing.assert_close(value, loss(model(X), model(X).argmax(1)).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_losses_of_outputs_with_a_domain_are_compared_in_it(scale):
    model = network()
    with torch.no_grad():
        model[2].weight *= scale
    bounded = nn.Sequential(model, nn.Sigmoid())  # torch refuses probabilities that random changes take above one
    loss, targets = said("mean", lambda o, t: F.binary_cross_entropy(o, t)), REALS.sigmoid()
    value = Objective(bounded, loss, (X, targets), microbatch_size=5).value()
    torch.testing.assert_close(value, F.binary_cross_entropy(bounded(X), targets).detach())
    masked = said("mean", lambda o, t: F.binary_cross_entropy(o[t > 0.3], t[t > 0.3]))
    with pytest.raises(ValueError, match="normalizer"):
        Objective(bounded, masked, (X, targets), microbatch_size=5).value()


def test_a_mask_that_the_model_hands_through_may_be_counted():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x), (x[:, :1] > 0).to(x.dtype)

    def mean(outputs, targets):
        values, mask = outputs
        return ((values - targets).square() * mask).sum() / mask.sum()

    model, loss = Masked(), said("mean", mean, lambda outputs, targets: outputs[1].sum())
    value = Objective(model, loss, (X, REALS), microbatch_size=5).value()
    torch.testing.assert_close(value, mean(model(X), REALS).detach())


@pytest.mark.parametrize(
    ("normalizer", "words"),
    [
        (lambda targets: targets != -100, "one finite number"),
        (lambda targets: "rows", "one finite number"),
        (lambda targets: -1, "one finite number >= 0"),
        (lambda targets: float("nan"), "one finite number >= 0"),
        (lambda outputs, targets: outputs.detach().square().sum(), "must not change with the parameters"),
        (lambda targets: 0, "no target counts"),
    ],
)
def test_normalizers_that_cannot_weigh_are_refused(normalizer, words):
    loss = said("mean", lambda o, t: F.cross_entropy(o, t), normalizer)
    with pytest.raises(ValueError, match=words):
        Objective(network(), loss, (X, LABELS), microbatch_size=5).value()


def test_a_partial_is_believed_what_is_set_on_itself():
    loss = functools.partial(lambda outputs, targets, beta: beta * (outputs - targets).abs().mean(), beta=2.0)
    loss.reduction = "mean"
    model = network()
    torch.testing.assert_close(
        Objective(model, loss, (X, REALS), microbatch_size=5).value(), loss(model(X), REALS).detach()
    )


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(), functools.partial(F.l1_loss)])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_outputs_and_targets_that_broadcast_over_each_other_are_refused_in_chunks(loss):
    model = network(1)
    torch.testing.assert_close(
        Objective(model, loss, (X, REALS[:, 0])).value(), loss(model(X), REALS[:, 0]).detach()
    )  # as torch has it
    with pytest.raises(ValueError, match=r"\[5, 1\] and targets of shape \[5\]"):
        Objective(model, loss, (X, REALS[:, 0]), microbatch_size=5).value()


def test_batches_that_do_not_form_a_whole_are_refused_unless_the_loss_says_what_it_divides_by():
    model = reader()
    batches = [(TOKENS, TOKENS_IGNORED), (TOKENS[:, :3], TOKENS[:, :3])]
    with pytest.raises(ValueError, match=r"cannot be joined.*normalizer"):
        Objective(model, said("mean", tokens), batches).value()
    counted = said("mean", tokens, lambda targets: (targets != -100).sum())
    sums = sum(tokens(model(x), y) * (y != -100).sum() for x, y in batches)
    total = sum((y != -100).sum() for _, y in batches)
    torch.testing.assert_close(Objective(model, counted, batches).value(), (sums / total).detach())


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    own = slice(0, 5) if rank == 0 else slice(5, ROWS)
    for name in ("tokens", "holes"):
        make, data, function, normalizer = COUNTED[name]
        part = tuple(x[own] for x in data)
        options = {"process_group": dist.group.WORLD}
        found[name] = Objective(make(), said("mean", function, normalizer), part, **options).value()
        try:
            Objective(make(), said("mean", function), part, **options).value()
        except ValueError as error:
            found[f"{name} refused"] = str(error)
    for reduction, function in (("sum", lambda o, t: (o - t).abs().sum()), ("sum", lambda o, t: (o - t).abs().mean())):
        objective = Objective(network(), said(reduction, function), (X[own], REALS[own]), **options)
        name = "sum" if "sum" not in found else "no sum"
        try:
            found[name] = objective.value()
        except ValueError as error:
            found[name] = str(error)
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_on_ranks_too(tmp_path):
    for found in results_of_ranks(child, tmp_path, 2, timeout=120):
        for name in ("tokens", "holes"):
            make, (x, y), function, _ = COUNTED[name]
            torch.testing.assert_close(found[name], function(make()(x), y).detach())
            assert "normalizer" in found[f"{name} refused"]
        torch.testing.assert_close(found["sum"], (network()(X) - REALS).abs().sum().detach())
        assert "no sum over the rows" in found["no sum"]
