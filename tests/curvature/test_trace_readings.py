"""What is read of the data into Python: a trace serves the data of which the same would be read, and no other."""

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from product_cases import REALS, randn, seeded
from torch import Tensor, nn
from trace_cases import right, squared

from latephase import HessianFree, Objective
from latephase.curvature import linearize
from latephase.curvature.tracing import cache

pytestmark = pytest.mark.usefixtures("same_numbers")


class Masked(nn.Module):
    """What a model of sequences does: a mask that masks nothing is left out, another is applied."""

    def __init__(self, read: Callable[["Masked", Tensor], int]):
        super().__init__()
        self.first, self.last, self.read = nn.Linear(4, 5), nn.Linear(5, 3), read
        self.register_buffer("limit", torch.tensor(2))

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        h = self.first(inputs)
        return self.last(torch.tanh(h) * (1 + int(self.read(self, mask))) * mask.double().mean(1, keepdim=True))


READINGS: dict[str, Callable[[Masked, Tensor], int]] = {
    "branch": lambda self, mask: 1 if mask.all() else 0,
    "comparison": lambda self, mask: 2 if mask.sum() == mask.numel() else 0,
    "whole number": lambda self, mask: int(mask.sum(1).max().item()),
    "made of a buffer": lambda self, mask: bool((mask.sum() > self.limit).item()),
    "written over later": lambda self, mask: written_over(mask),
    "loop": lambda self, mask: sum(1 for row in mask if row[0]),
}


def written_over(mask: Tensor) -> int:
    full = mask.all()
    found = 3 if full else 0
    full.logical_not_()
    return found


def masks(*zeros: int) -> list[Tensor]:
    """Masks [11, 6], the first so many entries of which are zero."""
    found = []
    for count in zeros:
        mask = torch.ones(66, dtype=torch.bool)
        mask[:count] = False
        found.append(mask.reshape(11, 6))
    return found


def objective(model: nn.Module, mask: Tensor, seed: int = 50) -> Objective:
    return Objective(model, nn.MSELoss(), ((randn(11, 4, seed=seed), mask), REALS))


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_no_data_is_computed_by_another_course(name, curvature):
    model = seeded(lambda: Masked(READINGS[name]))
    full, part = masks(0, 7)
    methods = []
    for use, mask in enumerate([full, full, full, part, part, full, part, full]):  # at uses that are not compared, too
        methods.append(right(objective(model, mask, seed=90 + use), curvature).method)
    assert methods[2:] == ["traced"] * 6


def test_a_buffer_that_changes_is_read_anew():
    model = seeded(lambda: Masked(READINGS["made of a buffer"]))
    (mask,) = masks(40)
    for limit in (2, 2, 2, 60, 60, 2, 60):
        model.limit.fill_(limit)
        assert right(objective(model, mask)).method == "traced" or limit == 2


def test_numbers_that_are_others_at_every_step_end_it_and_other_shapes_are_traced():
    model = seeded(lambda: Masked(lambda self, mask: int(mask.sum().item())))
    for count in range(8):
        last = right(objective(model, *masks(count)))
    assert last.reason == cache.OTHERWISE
    (key,) = cache._entries[model]
    assert len(cache._entries[model][key].courses) == cache.MOST_COURSES + 1
    assert right(objective(model, *masks(3))).method == "traced"  # that course is known
    few = Objective(model, nn.MSELoss(), ((randn(7, 4, seed=3), torch.ones(7, 6, dtype=torch.bool)), REALS[:7]))
    assert [right(few).method for _ in range(2)][-1] == "traced"


REFUSED: dict[str, Callable[[Masked, Tensor], int]] = {
    "of a parameter": lambda self, mask: bool(self.first.weight.sum() > 0),
    "of a hidden value": lambda self, mask: bool((self.first.weight.sum() + mask.sum()) > 0),
    "through a view that is written": lambda self, mask: through_a_view(self),
    "drawn": lambda self, mask: bool(torch.rand(()) < 2),
    "a number with decimals": lambda self, mask: int(2 * float(mask.double().mean())),
    "every entry": lambda self, mask: sum(1 for entry in mask.reshape(-1).repeat(2) if entry),
}


def through_a_view(model: Masked) -> int:
    """The value depends on a parameter, which a look at what it was made of does not show."""
    box = torch.zeros(3, dtype=torch.float64)
    box[1:].add_(model.first.weight.detach().sum())
    return bool((box != 0).any())


@pytest.mark.parametrize("name", REFUSED)
def test_what_moves_is_not_read(name):
    model = seeded(lambda: Masked(REFUSED[name]))
    torch.manual_seed(0)
    for _ in range(3):
        last = linearize(objective(model, *masks(3)))
    assert last.method != "traced"
    assert "read into Python" in str(last.reason)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_whatever_order_they_come_in(zeros):
    model = seeded(lambda: Masked(READINGS["whole number"]))
    for count in zeros:
        right(objective(model, *masks(20 * count)))


def test_steps_of_an_optimizer_are_those_without_a_trace(monkeypatch):
    def train() -> list[Tensor]:
        model = seeded(lambda: Masked(READINGS["branch"]))
        optimizer = HessianFree(model.parameters())
        for use, mask in enumerate(masks(0, 7, 0, 0, 9)):
            optimizer.step(objective(model, mask, seed=70 + use))
        return [p.detach() for p in model.parameters()]

    with_traces = train()
    monkeypatch.setattr("latephase.curvature.chunk.traced_pass", lambda *_, **options: "not today")
    for one, other in zip(with_traces, train(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)  # steps of 100 iterations amplify rounding


def test_a_stale_reading_is_caught_all_the_same(monkeypatch):
    """The comparison behind: were the reading not looked at, a use that is compared would tell."""
    monkeypatch.setattr("latephase.curvature.tracing.trace.Trace._serves", lambda *_: True)
    model = seeded(lambda: Masked(READINGS["branch"]))
    full, part = masks(0, 7)
    for mask in (full, full):
        linearize(objective(model, mask))
    with pytest.warns(RuntimeWarning, match="reads something that changed"):
        linearize(objective(model, part))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert right(squared(seeded(lambda: nn.Linear(4, 3)))).method != "traced"
