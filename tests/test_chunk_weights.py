"""Chunks of a loss of one's own: the value of the whole batch, or a refusal that says what to declare."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latephase import HessianFree, Objective
from latephase.curvature import linearize

V = 5


def tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.reshape(-1, V), targets.reshape(-1), ignore_index=-100)


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    seen = ~targets.isnan()
    return ((outputs - targets)[seen] ** 2).mean()


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    weights = targets[:, -1]
    return (weights * (outputs[:, 0] - targets[:, 0]) ** 2).sum() / weights.sum()


class Reweighed(nn.CrossEntropyLoss):
    """A kind of torch's own that computes something else."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        confidence = input.detach().softmax(1).gather(1, target[:, None])[:, 0]
        return (confidence * F.cross_entropy(input, target, reduction="none")).sum() / confidence.sum()


def by_confidence(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.detach().softmax(1).gather(1, targets[:, None]).sum()


def case(name: str, seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Linear(3, V).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    if name == "tokens":
        x = torch.randn(6, 4, 3, dtype=torch.float64)
        targets = torch.randint(V, (6, 4))
        targets[0, 1:], targets[3, 2:] = -100, -100
        return model, tokens, (x, targets), lambda y: (y != -100).sum()
    if name == "masked":
        targets = torch.randn(6, V, dtype=torch.float64)
        targets[0, :4], targets[4, 2] = torch.nan, torch.nan
        return model, masked, (x, targets), lambda z, y: (~y.isnan()).sum()
    if name == "weighted":
        targets = torch.rand(6, 2, dtype=torch.float64) + 0.1
        return model, weighted, (x, targets), lambda y: y[:, -1].sum()
    return model, Reweighed(), (x, torch.randint(V, (6,))), by_confidence


def own(loss, **attributes):
    """The loss with attributes, without a change of the one above."""
    wrapped = loss if isinstance(loss, nn.Module) else functools.partial(loss)
    for key, value in ({"reduction": "mean"} | attributes).items():
        setattr(wrapped, key, value)
    return wrapped


NAMES = ("tokens", "masked", "weighted", "reweighed")


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_mean_that_is_not_over_the_rows_is_refused_in_chunks(name, size):
    model, loss, batch, _ = case(name)
    objective = Objective(model, own(loss), batch, microbatch_size=size)
    for ask in (objective.value, objective, lambda: HessianFree(model.parameters()).step(objective)):
        with pytest.raises(
            ValueError, match=r"no mean over the rows: of all \d chunks at once it is .*loss\.normalizer"
        ):
            ask()


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES[:3])
def test_what_the_mean_divides_by_may_be_declared(name, size):
    model, loss, batch, normalizer = case(name)
    whole = Objective(model, own(loss), batch)
    parts = Objective(model, own(loss, normalizer=normalizer), batch, microbatch_size=size)
    torch.testing.assert_close(parts.value(), whole.value(), rtol=1e-12, atol=0)  # sums in another order
    one, other = linearize(whole), linearize(parts)
    torch.testing.assert_close(other.gradient, one.gradient, rtol=1e-11, atol=1e-14)
    v = torch.randn(one.space.size, dtype=torch.float64)
    torch.testing.assert_close(other.matvec(v), one.matvec(v), rtol=1e-11, atol=1e-14)


def test_a_count_that_changes_with_the_parameters_is_refused():
    """The weights of a step are those of its beginning; trial values would be weighed by counts of another point."""
    model, loss, batch, normalizer = case("reweighed")
    with pytest.raises(ValueError, match="must not change with the parameters"):
        Objective(model, own(loss, normalizer=normalizer), batch, microbatch_size=2).value()


def test_a_layer_of_zeros_does_not_hide_it():
    """All tokens then cost log V, so that whole and parts agree at the model's own outputs."""
    model, loss, batch, _ = case("tokens")
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with pytest.raises(ValueError, match="changed at random"):
        Objective(model, own(loss), batch, microbatch_size=1).value()


def test_a_plain_mean_over_the_rows_goes_on_as_it_is():
    model, _, (x, _), _ = case("weighted")
    targets = torch.randn(6, V, dtype=torch.float64)

    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 2).sum(1).mean()

    for loss in (own(squares), own(squares, normalizer=len)):
        parts = Objective(model, loss, (x, targets), microbatch_size=4).value()
        torch.testing.assert_close(parts, Objective(model, squares, (x, targets)).value(), rtol=1e-13, atol=0)


def test_what_cannot_be_joined_must_be_declared():
    torch.manual_seed(0)
    model = nn.Linear(3, V)
    batches = [(torch.randn(2, length, 3), torch.randint(V, (2, length))) for length in (2, 4)]
    with pytest.raises(ValueError, match=r"cannot be joined.*loss\.normalizer"):
        Objective(model, own(tokens), batches).value()
    value = Objective(model, own(tokens, normalizer=lambda y: (y != -100).sum()), batches).value()
    total = sum(F.cross_entropy(model(x).reshape(-1, V), y.reshape(-1), reduction="sum") for x, y in batches)
    torch.testing.assert_close(value, total.detach() / 12)


@pytest.mark.parametrize("count", [float("nan"), -1.0, "many", torch.ones(2)])
def test_a_declared_count_is_checked(count):
    model, loss, batch, _ = case("tokens")
    with pytest.raises(ValueError, match=r"loss\.normalizer must return one finite number"):
        Objective(model, own(loss, normalizer=lambda y: count), batch, microbatch_size=2).value()


def test_a_count_that_is_no_function_is_refused():
    model, loss, batch, _ = case("tokens")
    with pytest.raises(TypeError, match=r"loss\.normalizer must be a function"):
        Objective(model, own(loss, normalizer=3), batch, microbatch_size=2).value()


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(NAMES), st.integers(0, 1000), st.integers(1, 6))
def test_never_another_value_than_that_of_the_whole(name, seed, size):
    model, loss, batch, _ = case(name, seed)
    whole = Objective(model, own(loss), batch).value()
    parts = Objective(model, own(loss), batch, microbatch_size=size)
    if len(parts.chunks) > 1 and not agrees(parts, whole):
        with pytest.raises(ValueError, match="normalizer"):
            parts.value()
    elif len(parts.chunks) == 1:
        torch.testing.assert_close(parts.value(), whole, rtol=1e-11, atol=1e-14)


def agrees(parts: Objective, whole: Tensor) -> bool:
    """Whether weights by rows are right by chance: where every chunk has equal counts, say."""
    batches = [(chunk.inputs, chunk.targets) for chunk in parts.chunks]
    values = torch.stack([Objective(parts.model, parts.program.loss, batch).value() for batch in batches])
    rows = torch.tensor([float(chunk.rows) for chunk in parts.chunks], dtype=values.dtype)
    return bool(torch.isclose((values * rows).sum() / rows.sum(), whole, rtol=1e-11, atol=0))
