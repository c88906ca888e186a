"""The library's own contestants by name: each is what its name says, beside what is known by hand."""

import copy
import functools
import io
import math
import time

import pytest
import torch
from torch import nn

from latephase import Contestant, Halving, HessianFree, LatePhase, Objective, OneObjective, Wants
from latephase.finishing.source import Rows
from latephase.optim import ExponentialAverage, WindowAverage, multiplications_per_second
from latephase.optim.fresh_optimizers import MuonAndAdamW
from latephase.optim.late_phase import OWN, Budget, Subject
from latephase.optim.late_phase.contestant import twin
from latephase.optim.late_phase.from_average import PASSES, FromAverageOf
from latephase.optim.newton.direct_plan import PROBED

PACKAGES = {"soap": "pytorch_optimizer", "schedule_free": "schedulefree"}


class Noisy:
    """A classifier with batch norm and dropout, rows in memory, and a base with momentum."""

    def __init__(self, dropout=0.1):
        torch.manual_seed(0)
        layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3)]
        self.model = nn.Sequential(*layers).double()
        inputs = torch.randn(600, 4).double()
        targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
        self.template = Objective(self.model, nn.CrossEntropyLoss(), (inputs[:500], targets[:500]))
        self.source = Rows(self.template, (inputs[:500], targets[:500]), 16, 0)
        self.held_out = [self.template.on((inputs[500 + i :: 4], targets[500 + i :: 4])) for i in range(4)]
        self.base = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            self.base.step(self.source.draw(Wants(16), step)[0])

    def late(self, contestants, budget):
        settings = Halving(share=0.4, looks=5)
        return LatePhase(
            self.model.parameters(), self.base, budget, self.held_out, self.source, contestants, False, settings,
            "steps",
        )  # fmt: skip

    def tensors(self):
        return [tensor.detach().clone() for tensor in (*self.model.parameters(), *self.model.buffers())]


def through_a_file(state):
    """As a folder of a finish keeps it: tensors and plain values only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


QUICK = ("cosine", "linear", "one_minus_sqrt", "cosine_frozen", "ema", "lawa", "muon", "soap", "schedule_free")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in (*QUICK, "hessian_free_averaged") else pytest.mark.slow)
        for name in OWN
        if name != "base"
    ],
)
def test_each_takes_part_by_its_name_and_is_gone_on_with_bit_for_bit(name):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], reason="of an optional package")
    ends = []
    for cut in (None, 17):
        task = Noisy()
        late, step = task.late([name, "base"], 40), 0
        torch.manual_seed(1)
        while late.phase != "done":
            if step == cut:
                saved = through_a_file((task.model.state_dict(), late.state_dict(), torch.get_rng_state()))
                task = Noisy()
                late = task.late([name, "base"], 40)
                task.model.load_state_dict(saved[0])
                late.load_state_dict(saved[1])
                torch.set_rng_state(saved[2])
            late.step()
            step += 1
        ends.append((task.tensors(), late.events))
        assert late.excluded == {}
        assert [event["reason"] for event in late.events if event["event"] == "out" and ":" in event["reason"]] == []
        assert max(event["steps"] for event in late.events if event["name"] == name and "steps" in event) >= 4
        assert late.best[0] <= late.events[0]["loss"]
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(one, other) for one, other in zip(ends[0][0], ends[1][0], strict=True))


def test_two_that_go_on_from_the_base_have_a_state_each():
    """With momentum: what each reaches in the race is what it reaches alone; the base itself is the first one's."""
    both = Noisy(dropout=0.0)
    late = both.late([Contestant(name, None, Wants(16), training=True) for name in ("one", "other")], 60)
    while late.phase in ("base", "race"):
        late.step()
    scores = [event for event in late.events if event["event"] == "score"]
    assert [event["name"] for event in scores] == ["one", "other"]
    for event in scores:
        alone = Noisy(dropout=0.0)
        only = alone.late([Contestant("only", None, Wants(16), training=True)], 60)
        for _ in range(event["steps"]):
            only.step()
        alone.model.eval()
        counts = [sum(chunk.rows for chunk in part.chunks) for part in alone.held_out]
        losses = [float(part.value()) * count for part, count in zip(alone.held_out, counts, strict=True)]
        assert event["loss"] == pytest.approx(sum(losses) / sum(counts), rel=1e-12)  # of sums in another order


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        functools.partial(torch.optim.Adam, lr=0.01),
        functools.partial(MuonAndAdamW, lr=0.01),
    ],
)
def test_a_twin_goes_on_as_its_model_and_neither_moves_the_other(make):
    matrix, vector = nn.Parameter(torch.eye(3)), nn.Parameter(torch.ones(3))
    optimizer = make([matrix, vector])
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)  # which wraps the step of the one it is given

    def walked(one, steps):
        states = []
        for step in range(steps):
            matrix.grad, vector.grad = torch.full((3, 3), 1.0 + step) + matrix.detach(), 2 * vector.detach()
            one.step()
            states.append((matrix.detach().clone(), vector.detach().clone()))
        return states

    walked(optimizer, 2)
    scheduler.step()
    other, here = twin(optimizer), (matrix.detach().clone(), vector.detach().clone())
    found = []
    for each in (other, optimizer):
        with torch.no_grad():
            matrix.copy_(here[0])
            vector.copy_(here[1])
        found.append(walked(each, 3))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


def test_muon_and_adamw_have_one_state_dict():
    ends = []
    for saved in (False, True):
        matrix, vector = nn.Parameter(torch.eye(3)), nn.Parameter(torch.ones(3))
        optimizer = MuonAndAdamW([matrix, vector], lr=0.01)
        for step in range(4):
            if saved and step == 2:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = MuonAndAdamW([matrix, vector], lr=0.5)
                optimizer.load_state_dict(state)
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01 / (step + 1)
            matrix.grad, vector.grad = matrix.detach() + step, vector.detach().square()
            optimizer.step()
        ends.append((matrix, vector))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


class Point(nn.Module):
    """f = 0.5 x^2, so that gradient descent with rate r multiplies x by 1 - r."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, inputs):
        return inputs * self.x


def half_squares(outputs, targets):
    return 0.5 * outputs.square().sum()


def point():
    model = Point()
    return model, Objective(model, half_squares, (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1)))


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        (
            functools.partial(ExponentialAverage, 0.1),
            lambda x: (
                sum(math.exp(-(len(x) - 1 - i) / len(x) / 0.1) * each for i, each in enumerate(x))
                / sum(math.exp(-i / len(x) / 0.1) for i in range(len(x)))
            ),
        ),
        (functools.partial(WindowAverage, 3, 10), lambda x: sum(x[step] for step in (28, 32, 36)) / 3),
    ],
)
def test_an_average_of_a_window_is_what_it_is_by_hand(average, expected):
    """Rate 2.1 jumps over the minimum and away from it, so that an average is better than the last state, always."""
    model, objective = point()
    base = torch.optim.SGD(model.parameters(), lr=2.1)
    given = [Contestant("base", None, Wants(), None, average)]
    late = LatePhase(
        model.parameters(), base, 40, objective, OneObjective(objective), given, False, Halving(looks=1), "steps"
    )
    while late.phase != "done":
        late.step()
    xs = [(-1.1) ** (step + 1) for step in range(40)]
    looked = [event for event in late.events if event["event"] == "look"][-1]
    assert looked["loss"] == pytest.approx(0.5 * expected(xs) ** 2, rel=1e-9)


def test_second_order_steps_begin_from_the_average_of_the_bases():
    model, objective = point()
    base = torch.optim.SGD(model.parameters(), lr=1.5)
    made = FromAverageOf("averaged", HessianFree, Wants(), base_rows=None).optimizer(base)
    x, average = 1.0, 0.0
    for k in range(1, PASSES + 1):
        made.step(objective)
        x *= -0.5
        average += min(1.0, 4 / (k + 3)) * (x - average)
    assert float(model.x.detach()) == pytest.approx(average, rel=1e-12)
    assert made.report is None
    made.step(objective)  # damped Newton
    assert abs(float(model.x.detach())) < abs(average)
    assert made.report is not None
    assert base.state_dict()["state"] == {}  # the base itself took no step


def test_a_frozen_schedule_draws_no_dropout_and_moves_no_statistics():
    task = Noisy(dropout=0.5)
    before, statistics = torch.get_rng_state(), task.model[1].running_mean.clone()
    late = task.late(["cosine_frozen"], 6)
    while late.phase != "done":
        late.step()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(task.model[1].running_mean, statistics)
    assert late.best[0] < late.events[0]["loss"]


def test_steps_on_all_rows_take_the_curvature_on_rows_drawn_by_their_number():
    seen = []

    class Seen(torch.optim.SGD):
        def step(self, closure, curvature_objective=None):
            seen.append((closure, curvature_objective))
            return super().step(closure)

    def given(task):
        return task.late([Contestant("seen", functools.partial(Seen, lr=0.01), Wants(None, 0, 40))], 2)

    for _ in range(2):
        late = given(Noisy())
        while late.phase != "done":
            late.step()
    rows = [part.chunks[0].targets for _, part in seen]
    assert [sum(chunk.rows for chunk in whole.chunks) for whole, _ in seen] == [500] * 4
    assert [len(each) for each in rows] == [40] * 4
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[1], rows[3])
    assert not torch.equal(rows[0], rows[1])


def test_where_none_of_those_that_were_named_fits_it_is_said_why():
    model, objective = point()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    named = ["hessian_free_full", "hessian_free_averaged"]
    late = LatePhase(
        model.parameters(), base, 9, source=OneObjective(objective), contestants=named, detector=False, unit="steps"
    )
    with pytest.raises(ValueError, match="hessian_free_full: hessian_free sees all rows already"):
        late.step()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["lbgfs"], "did you mean 'lbfgs'"),
        (["base", "base"], "one name"),
        ("base", "in a list"),
        ([Contestant("base"), "base"], "one name"),
    ],
)
def test_names_that_will_not_do_are_refused_in_words(wrong, says):
    model, _ = point()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises((TypeError, ValueError), match=says):
        LatePhase(model.parameters(), base, 9, contestants=wrong)


def test_an_average_that_is_none_is_refused():
    with pytest.raises(TypeError, match="average of the contestant odd"):
        Contestant("odd", average=3)  # pyright: ignore[reportArgumentType]


def test_what_steps_take_is_foretold_by_the_budgets_own_clock():
    """Of one that ticks once whenever it is looked at, whatever the machine does: a gradient takes a second."""
    ticks = iter(range(1000))
    task = Noisy()
    batch = task.source.draw(Wants(50), 1)[0]
    subject = Subject(batch, 500, 50, False, 100.0, lambda: float(next(ticks)))
    assert "a gradient of all 500 rows takes about 10 s, too long for 100 s" in subject.too_many_rows
    assert multiplications_per_second(torch.float64, torch.device("cpu"), subject.clock) == PROBED**3
    assert Budget(9.0, "processor_seconds").clock is time.process_time
