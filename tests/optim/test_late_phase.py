"""The race and what follows it, on problems whose order of contestants is known by construction."""

import copy
import functools
import warnings

import pytest
import torch
from torch import nn

from latephase import Contestant, Halving, HessianFree, LatePhase, Objective, OneObjective, SelfScaledBroyden, Wants
from latephase.finishing.source import Rows
from latephase.optim.late_phase import one_minus_sqrt

LARGEST = 10.0
"""Curvature of the stiffest direction of `Bowl`: gradient descent diverges with rates above 2 / LARGEST."""


class Bowl(nn.Module):
    """f = 0.5 sum h_i x_i^2 as mean squared outputs, h from 0.1 to LARGEST: what a rate reaches in a step is known."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.register_buffer("roots", torch.logspace(-1, 1, 4, dtype=torch.float64).sqrt())

    def forward(self, inputs):
        return inputs * (self.roots * self.x)


def bowl():
    model = Bowl()
    return model, Objective(model, HalfSquares(), (torch.ones(1, 4, dtype=torch.float64), torch.zeros(1, 4)))


class HalfSquares(nn.Module):
    reduction = "sum"

    def forward(self, outputs, targets):
        return 0.5 * outputs.square().sum()


def descent(name, lr, **more):
    return Contestant(name, functools.partial(torch.optim.SGD, lr=lr), **more)


def on_bowl(*contestants, budget=200, **more):
    model, objective = bowl()
    base = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {
        "source": OneObjective(objective),
        "detector": False,
        "unit": "steps",
        "contestants": contestants or None,
    }
    return model, objective, LatePhase(model.parameters(), base, budget, **(options | more))


def finished(optimizer):
    while optimizer.phase != "done":
        optimizer.step()
    return optimizer.events


def told(events, kind):
    return [(event["name"], event["loss"]) for event in events if event["event"] == kind]


def by_hand(lr, steps):
    h = torch.logspace(-1, 1, 4, dtype=torch.float64)
    return float(0.5 * (h * (1 - lr * h) ** (2 * steps)).sum())


RATES = {"slow": 0.001, "slower": 0.0001, "quick": 0.1, "middling": 0.01}


def test_the_worse_half_drops_out_after_equal_slices_that_double():
    """Three of four may cost a fifth of 180 steps, so that all four get 48: 6 steps each, then 12 for each of two."""
    *_, optimizer = on_bowl(*(descent(name, lr) for name, lr in RATES.items()), budget=180, settings=Halving(share=0.2))
    events = finished(optimizer)
    scores = [event for event in events if event["event"] == "score"]
    assert [(event["name"], event["steps"]) for event in scores] == [
        *((name, 6) for name in RATES),
        *((name, 18) for name in RATES if name in ("quick", "middling")),
    ]
    for event in scores:  # rounding of some products in another order
        assert event["loss"] == pytest.approx(by_hand(RATES[event["name"]], event["steps"]), rel=1e-12)
    assert [name for name, _ in told(events, "out")] == ["slow", "slower", "middling"]
    assert told(events, "winner") == [("quick", pytest.approx(by_hand(0.1, 18), rel=1e-12))]


def test_the_winner_goes_on_from_where_it_stands_to_the_end_of_the_budget():
    _, objective, optimizer = on_bowl(*(descent(name, lr) for name, lr in RATES.items()), budget=160)
    events = finished(optimizer)
    assert optimizer.spent == 160
    steps = max(event["steps"] for event in events if event["event"] == "look")
    others = sum({event["name"]: event["steps"] for event in events if event["event"] == "score"}[n] for n in RATES)
    own = next(e["steps"] for e in reversed(events) if e["event"] == "score" and e["name"] == "quick")
    assert steps == 160 - (others - own)
    assert others - own <= 0.1 * 160 + 1  # a step may begin within what the race may cost, and end beyond it
    assert float(objective.value()) == pytest.approx(by_hand(0.1, steps), rel=1e-10)
    assert float(objective.value()) == optimizer.best[0]
    assert optimizer.best[1] == "quick"
    with pytest.raises(RuntimeError, match="all is done"):
        optimizer.step()


def test_one_contestant_alone_pays_for_no_race():
    _, objective, optimizer = on_bowl(descent("quick", 0.1), budget=30)
    finished(optimizer)
    assert float(objective.value()) == pytest.approx(by_hand(0.1, 30), rel=1e-12)
    assert told(optimizer.events, "score") == []


def test_where_all_diverge_the_model_is_as_it_was():
    model, _, optimizer = on_bowl(descent("wild", 1.0), descent("wilder", 10.0), budget=40)
    before = model.x.detach().clone()
    finished(optimizer)
    assert torch.equal(model.x, before)
    assert optimizer.best[1] == "start"


class Raising(torch.optim.SGD):
    def step(self, closure=None):
        if self.param_groups[0]["lr"] == 0.05 and closure is not None:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(7.0)
            raise ValueError("a layer that it does not know")
        return super().step(closure)


def test_a_contestant_that_raises_is_out_by_name_and_leaves_nothing_behind():
    broken = Contestant("broken", functools.partial(Raising, lr=0.05))
    _, objective, optimizer = on_bowl(broken, descent("quick", 0.1), budget=60)
    events = finished(optimizer)
    out = next(event for event in events if event["name"] == "broken")
    assert (out["event"], out["reason"]) == ("out", "ValueError: a layer that it does not know")
    assert optimizer.best[1] == "quick"
    steps = max(event["steps"] for event in events if event["event"] == "look")
    assert float(objective.value()) == pytest.approx(by_hand(0.1, steps), rel=1e-10)


class Later(torch.optim.SGD):
    """Gradient descent that raises after twenty steps."""

    taken = 0

    def step(self, closure=None):
        self.taken += 1
        if self.taken > 20:
            raise MemoryError("no room for the next step")
        return super().step(closure)


def test_where_the_winner_raises_the_next_best_goes_on():
    late = Contestant("late", functools.partial(Later, lr=0.1))
    *_, optimizer = on_bowl(late, descent("middling", 0.01), budget=100)
    events = finished(optimizer)
    assert [name for name, _ in told(events, "winner")] == ["late", "middling"]
    assert "no room for the next step" in [e for e in events if e["event"] == "out"][-1]["reason"]
    assert optimizer.spent == 100


def test_where_all_see_the_same_data_the_next_best_goes_on_from_the_best_state():
    """The loss of gradient descent is known: so many steps with one rate, then so many with another."""
    late = Contestant("late", functools.partial(Later, lr=0.1))
    _, objective, optimizer = on_bowl(late, descent("middling", 0.01), budget=100)
    events = finished(optimizer)
    looks = {event["name"]: event for event in events if event["event"] == "look"}
    raced = next(e["steps"] for e in reversed(events) if e["event"] == "score" and e["name"] == "middling")
    first, then = looks["late"]["steps"], looks["middling"]["steps"] - raced
    assert first > 10
    assert then > 10
    h = torch.logspace(-1, 1, 4, dtype=torch.float64)
    expected = float(0.5 * (h * (1 - 0.1 * h) ** (2 * first) * (1 - 0.01 * h) ** (2 * then)).sum())
    assert float(objective.value()) == pytest.approx(expected, rel=1e-10)
    assert optimizer.best[1] == "middling"


def test_a_schedule_spans_what_is_left():
    rates = []

    class Seen(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    cooled = Contestant("cooled", functools.partial(Seen, lr=0.1), schedule=one_minus_sqrt)
    finished(on_bowl(cooled, budget=10)[2])
    assert rates == pytest.approx([0.1 * (1 - (step / 10) ** 0.5) for step in range(10)], rel=1e-12)


def test_a_rate_that_oscillates_is_held_by_its_average():
    """At the rate 2 / h the stiffest coordinate jumps between 1 and -1 for ever; the states' average is near 0."""
    at_the_edge = descent("edge", 2 / LARGEST, average=True)
    _, objective, optimizer = on_bowl(at_the_edge, budget=200)
    finished(optimizer)
    assert by_hand(2 / LARGEST, 200) > 4.9
    assert float(objective.value()) < 0.01


class After:
    """A detector that fires after so many steps."""

    def __init__(self, steps):
        self.steps, self.seen = steps, 0

    def update(self, parameters, *, loss):
        self.seen += 1

    @property
    def in_diffusion(self):
        return self.seen >= self.steps

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, saved):
        self.seen = saved["seen"]


def noisy():
    """A classifier with batch norm and dropout, rows in memory, held-out rows in four parts."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3)]
    model = nn.Sequential(*layers)
    inputs = torch.randn(300, 4)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    template = Objective(model, nn.CrossEntropyLoss(), (inputs[:200], targets[:200]))
    source = Rows(template, (inputs[:200], targets[:200]), 16, 0)
    held_out = [template.on((inputs[200 + i :: 4], targets[200 + i :: 4])) for i in range(4)]
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    contestants = [
        Contestant("base", None, Wants(16), one_minus_sqrt, average=True, training=True),
        Contestant("hessian_free", HessianFree.late_phase, Wants(96, 48, 24)),
        Contestant("broyden", SelfScaledBroyden),
    ]
    optimizer = LatePhase(
        model.parameters(),
        base,
        70,
        held_out=held_out,
        source=source,
        contestants=contestants,
        detector=After(8),
        settings=Halving(share=0.4, looks=5),
        unit="steps",
    )
    return model, template, optimizer


def trained(cut=None):
    """Parameters and buffers at the end, events and phases; `cut`: before that step all is saved and loaded anew."""
    model, template, optimizer = noisy()
    torch.manual_seed(1)
    phases = []
    while optimizer.phase != "done":
        if len(phases) == cut:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
            model, template, optimizer = noisy()
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            assert optimizer.phase == saved[1]["phase"]
            torch.set_rng_state(saved[2])
        if optimizer.phase == "base":
            rows = torch.randperm(200, generator=torch.Generator().manual_seed(len(phases)))[:16]
            optimizer.step(template.on(_batch(template, rows)))
        else:
            optimizer.step()
        phases.append(optimizer.phase)
    return [*model.parameters(), *model.buffers()], optimizer.events, phases


def _batch(template, rows):
    (chunk,) = template.chunks
    (inputs,) = chunk.inputs if isinstance(chunk.inputs, tuple) else (chunk.inputs,)
    return inputs[rows], chunk.targets[rows]


@pytest.fixture(scope="module")
def uninterrupted():
    return trained()


def test_all_phases_are_gone_through(uninterrupted):
    assert list(dict.fromkeys(uninterrupted[2])) == ["base", "race", "winner", "done"]


@pytest.mark.parametrize("cut", [3, 8, 15, 27, 45])
def test_a_run_resumed_in_any_phase_is_the_uninterrupted_one_bit_for_bit(uninterrupted, cut):
    tensors, events, phases = trained(cut)
    assert events == uninterrupted[1]
    assert phases == uninterrupted[2]
    for resumed, whole in zip(tensors, uninterrupted[0], strict=True):
        assert torch.equal(resumed, whole)


def test_a_loop_gives_what_is_wanted_where_there_is_no_source():
    model, template, _ = noisy()
    (inputs, targets), loss = _batch(template, slice(None)), nn.CrossEntropyLoss()
    contestants = [
        Contestant("base", None, Wants(16), training=True),
        Contestant("hessian_free", HessianFree.late_phase, Wants(96, 48, 24)),
    ]
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    held_out = Objective(model, loss, (inputs[150:], targets[150:]))
    optimizer = LatePhase(
        model.parameters(), base, 60, held_out, None, contestants, After(5), Halving(share=0.4), "steps"
    )
    wanted = set()
    while optimizer.phase != "done":
        wants = optimizer.wants
        wanted.add(wants)
        evaluation = None
        if wants is not None and wants.evaluation:
            evaluation = Objective(model, loss, (inputs[96:144], targets[96:144]))
        rows = slice(0, 16 if wants is None else wants.rows)
        optimizer.step(Objective(model, loss, (inputs[rows], targets[rows])), evaluation=evaluation)
    assert wanted == {None, Wants(16), Wants(96, 48, 24)}
    assert optimizer.best[0] <= optimizer.events[0]["loss"]


def test_the_rates_of_the_base_follow_a_scheduler_until_the_hand_over():
    model, objective = bowl()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = LatePhase(
        model.parameters(), base, 40, source=OneObjective(objective), contestants=[descent("quick", 0.1)],
        detector=After(6), unit="steps",
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for _ in range(4):
        optimizer.step(objective)
        scheduler.step()
    assert base.param_groups[0]["lr"] == 0.025


def test_without_a_detector_that_fires_the_base_hands_over_in_time():
    model, objective = bowl()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    source, settings = OneObjective(objective), Halving(latest=0.5)
    optimizer = LatePhase(
        model.parameters(), base, 20, None, source, [descent("quick", 0.1)], After(10**9), settings, "steps"
    )
    for _ in range(10):
        assert optimizer.phase == "base"
        optimizer.step(objective)
    assert optimizer.phase == "winner"


def test_without_held_out_data_a_noisy_problem_is_warned_of():
    model, template, _ = noisy()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = LatePhase(
        model.parameters(), base, 9, contestants=[descent("slow", 0.01)], detector=False, unit="steps"
    )
    with pytest.warns(UserWarning, match="no held-out data"):
        optimizer.step(template)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finished(on_bowl(descent("quick", 0.1), budget=3)[2])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"base": nn.Linear(1, 1)}, "torch optimizer"),
        ({"budget": 0.0}, "above 0"),
        ({"budget": float("inf")}, "finite"),
        ({"budget": True}, "finite number"),
        ({"unit": "hours"}, "seconds"),
        ({"contestants": []}, "not be empty"),
        ({"contestants": [1]}, "Contestant objects"),
        ({"contestants": [Contestant("a"), Contestant("a")]}, "one name"),
        ({"detector": 3}, "detector must be"),
    ],
)
def test_what_will_not_do_is_refused_in_words(wrong, says):
    model, _ = bowl()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"base": base, "budget": 10.0, "unit": "steps", "detector": False} | wrong
    with pytest.raises((TypeError, ValueError), match=says):
        LatePhase(model.parameters(), **given)


def test_parameters_must_be_the_bases():
    model, _ = bowl()
    other = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="parameters of the base"):
        LatePhase(model.parameters(), torch.optim.SGD(other.parameters(), lr=0.1), 10.0)


@pytest.mark.parametrize("wants", [(0,), (4, -1), (4, 2, 0), ("4",)])
def test_a_contestants_wants_are_numbers_of_rows(wants):
    with pytest.raises(ValueError, match="number of rows"):
        Contestant("odd", None, wants)


def test_states_of_others_are_refused():
    *_, optimizer = on_bowl(descent("quick", 0.1), descent("slow", 0.01))
    optimizer.step()
    saved = optimizer.state_dict()
    *_, other = on_bowl(descent("quick", 0.1))
    with pytest.raises(ValueError, match="slow"):
        other.load_state_dict(saved)
    with pytest.raises(ValueError, match="99"):
        optimizer.load_state_dict(saved | {"version": 99})
    with pytest.raises(ValueError, match="no state of a LatePhase"):
        optimizer.load_state_dict(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1).state_dict())


def test_a_winner_that_overfits_makes_room_for_the_next_best():
    """Held out is the bowl around 0.9: who rushes to 0 passes it, and is worse ever after."""
    model, objective = bowl()
    held_out = Objective(model, AroundNine(), (torch.ones(1, 4, dtype=torch.float64), torch.zeros(1, 4)))
    base = torch.optim.SGD(model.parameters(), lr=0.01)
    contestants = [descent("rushing", 0.002), descent("slow", 0.0001)]
    settings = Halving(share=0.02, looks=50)
    optimizer = LatePhase(
        model.parameters(), base, 400, held_out, OneObjective(objective), contestants, False, settings, "steps"
    )
    events = finished(optimizer)
    assert [name for name, _ in told(events, "winner")] == ["rushing", "slow"]
    (out,) = [event for event in events if event["event"] == "out" and "looks" in event["reason"]]
    assert out["name"] == "rushing"
    assert optimizer.spent == 400


class AroundNine(nn.Module):
    reduction = "sum"

    def forward(self, outputs, targets):
        roots = torch.logspace(-1, 1, 4, dtype=torch.float64).sqrt()
        return 0.5 * (outputs - 0.9 * roots).square().sum()
