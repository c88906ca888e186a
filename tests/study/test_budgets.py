"""What a budget buys: which state is evaluated at each point of it, and what has been computed by then."""

from types import SimpleNamespace

import pytest
import small_strategies
from small_studies import custom, first_order, hessian_free, study_of

from latephase.curvature.linearization import Linearization
from latephase.objective.objective import Objective
from latephase.problems import get
from latephase.records.files import read_journal, read_json
from latephase.study.config import Study
from latephase.study.performing import clock as clock_module
from latephase.study.performing import run as run_module
from latephase.study.performing.checkpoint import checkpoint_path, load_checkpoint
from latephase.study.performing.evaluate import Evaluator
from latephase.study.performing.run import perform_run
from latephase.study.performing.runs import Conditions, RunKey
from latephase.study.performing.train import train
from latephase.study.strategies import StrategyContext, copied, start_strategy

NO_PARAMETERS_MOVE = {
    "damping": {"kind": "fixed", "value": 1.0},
    "line_search": False,
    "solver": {"candidates": "last", "max_iter": 2},
}
TABLES = [
    first_order(),
    first_order("averaging"),
    custom("Plain"),
    custom("Uncounted", "uncounted"),
    custom("Timed", "timed", steps=[0.25, 0.25, 0.25, 0.5]),
    custom("Timed", "finishing", steps=[0.25] * 20, finish=0.5),
    hessian_free(),
    hessian_free(name="own-batch", evaluation_batch_size=0),
    hessian_free(name="part", curvature_batch_size=8),
    hessian_free(name="debiased", options={"debias": True, "solver": {"max_iter": 3}}),
    hessian_free(name="ratio", options={"damping": {"data": "objective"}, "solver": {"max_iter": 3}}),
    hessian_free(name="plain", options=NO_PARAMETERS_MOVE),
    {"kind": "adamqlr", "name": "adamqlr", "label": "A", "batch_size": 48, "options": {"lr_clip": 0.1}},
    {"kind": "sgdqlr", "name": "sgdqlr", "label": "S", "options": {"curvature": "hessian", "lr_clip": 0.1}},
    {"kind": "adamqlr", "name": "undamped", "label": "U", "batch_size": 48, "options": {"lr_clip": 0.01}},
    {"kind": "lbfgs", "name": "lbfgs", "label": "L", "batch_size": 48, "options": {"max_iter": 4}},
]


@pytest.fixture(scope="module")
def study():
    return study_of(*TABLES)


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study)
    return directory


@pytest.fixture
def run(study, trained, tmp_path):
    """A function: perform a run under a budget; its status and its evaluations."""

    def perform(name, unit, budget, evaluations=4):
        changed = study.model_copy(
            update={"evaluations": evaluations, "budget": study.budget.model_copy(update={"unit": unit})}
        )
        if not (tmp_path / "training").exists():
            (tmp_path / "training").symlink_to(trained / "training")
        key = RunKey(3, next(s for s in study.strategies if s.name == name), 0)
        perform_run(Conditions(tmp_path, changed, budget, 0.5, {}), key)
        folder = tmp_path / "runs" / key.run_id
        rows = [row for row in read_journal(folder / "rows.jsonl") if row["event"] == "evaluation"]
        return read_json(folder / "status.json"), rows

    return perform


@pytest.fixture
def states_by_hand(study, trained):
    """A function: the training losses after each of so many steps of a strategy."""

    def take(name, steps):
        problem = get(study.problem)
        checkpoint = load_checkpoint(checkpoint_path(trained, 3))
        context = StrategyContext(problem, problem.load(), problem.model(), study.training, checkpoint, 0, 0.5)
        strategy = start_strategy(next(s for s in study.strategies if s.name == name), context)
        evaluate = Evaluator(problem, context.model, context.splits)
        losses = [evaluate(strategy.held())["train_loss"]]
        for _ in range(steps):
            strategy.step(0.0)
            losses.append(evaluate(strategy.finished(copied(strategy.held())))["train_loss"])
        return losses

    return take


@pytest.fixture
def clock_by_hand(monkeypatch):
    """Clocks on which only the strategy `Timed` moves the time."""
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: small_strategies.NOW[0]))


@pytest.mark.usefixtures("clock_by_hand")
def test_seconds_are_evaluated_at_their_points_with_the_state_held_then(run, states_by_hand):
    """Steps end at 0.25, 0.5, 0.75 and 1.25 s."""
    status, rows = run("timed", "seconds", 1.0, 5)
    assert [row["spent"] for row in rows] == [0.0, 0.2, 0.4, pytest.approx(0.6), 0.8, 1.0]
    steps = [0, 0, 1, 2, 3, 3]
    assert [row["step"] for row in rows] == steps
    by_hand = states_by_hand("own", 3)
    assert [row["train_loss"] for row in rows] == [by_hand[step] for step in steps]
    assert (status["steps"], status["samples"], status["gradients"]) == (3, 72, 3.0)
    assert (status["spent"], status["overshoot"], status["scored_seconds"]) == (1.25, 0.25, 1.25)


@pytest.mark.usefixtures("clock_by_hand")
def test_what_is_done_before_an_evaluation_is_on_the_clock(run):
    """Steps of a quarter second, and half a second before an evaluation: two of four fit."""
    status, rows = run("finishing", "seconds", 1.0, 2)
    assert [row["step"] for row in rows] == [0, 2, 2]  # evaluated at 0.5, and the third step ends at 1.25
    assert status["spent"] == status["scored_seconds"] == 1.25


def test_a_step_that_ends_at_the_point_counts_and_none_follows(run, states_by_hand):
    status, rows = run("constant", "steps", 6, 3)
    assert [(row["spent"], row["step"]) for row in rows] == [(0, 0), (2, 2), (4, 4), (6, 6)]
    by_hand = states_by_hand("constant", 6)
    assert [row["train_loss"] for row in rows] == by_hand[::2]
    assert (status["steps"], status["samples"], status["spent"], status["overshoot"]) == (6, 144, 6.0, 0.0)


def test_points_between_steps_hold_the_step_before(run):
    _, rows = run("constant", "steps", 3, 4)
    assert [(row["spent"], row["step"]) for row in rows] == [(0, 0), (0.75, 0), (1.5, 1), (2.25, 2), (3, 3)]


def test_gradients_are_spent_by_weights_and_what_exceeds_them_is_overshoot(run, states_by_hand):
    status, rows = run("constant", "gradients", 4.0, 2)
    assert [(row["spent"], row["step"]) for row in rows] == [(0, 0), (2, 2), (4, 4)]
    assert status["overshoot"] == 0.0
    status, rows = run("hf", "gradients", 30.0, 3)
    assert [row["spent"] for row in rows] == [0, 10, 20, 30]
    assert status["gradients"] <= 30 < status["spent"]
    assert status["overshoot"] == pytest.approx(status["spent"] - 30)
    by_hand = states_by_hand("hf", rows[-1]["step"])
    assert [row["train_loss"] for row in rows] == [by_hand[row["step"]] for row in rows]
    assert status["steps"] == rows[-1]["step"]


def test_a_strategy_that_counts_nothing_fails_under_a_budget_in_gradients_only(run):
    status, rows = run("uncounted", "gradients", 4.0)
    assert status["status"] == "failed"
    assert "counted no work in a step" in status["error"]
    assert "count in context.work, or choose another unit" in status["error"]
    assert len(rows) == 1
    assert run("uncounted", "steps", 4)[0]["status"] == "finished"


@pytest.mark.usefixtures("clock_by_hand")
def test_evaluation_is_not_on_the_scored_clock(run, monkeypatch):
    """Steps take 0.25 s each and every one of the three evaluations of the run 10 s, of a clock moved by hand."""

    class SlowEvaluator(Evaluator):
        def __call__(self, state):
            small_strategies.NOW[0] += 10.0
            return super().__call__(state)

    monkeypatch.setattr(run_module, "Evaluator", SlowEvaluator)
    status, rows = run("timed", "seconds", 1.0, 2)
    assert len(rows) == 3
    assert status["scored_seconds"] == 1.25  # the fourth step ends the budget
    assert status["overshoot"] == 0.25
    assert status["evaluation_seconds"] >= 30.0  # and what writing took


class Counter:
    """Passes over rows, counted where they are made, whichever strategy asks for them."""

    def __init__(self, monkeypatch):
        self.counts = dict.fromkeys(("gradients", "values", "forms", "products"), 0)
        self.linear = []
        self.watch(monkeypatch, Objective, "__call__", "gradients", lambda objective: objective)
        self.watch(monkeypatch, Objective, "value", "values", lambda objective: objective)
        self.watch(monkeypatch, Linearization, "matvec", "products", lambda linear: linear.objective)
        self.watch(monkeypatch, Linearization, "quadratic_form", "forms", lambda linear: linear.objective)
        make = Linearization.__init__

        def made(linear, *arguments, **options):
            self.linear.append(linear)
            make(linear, *arguments, **options)

        monkeypatch.setattr(Linearization, "__init__", made)

    def watch(self, monkeypatch, owner, name, kind, objective_of):
        method = getattr(owner, name)

        def counted(subject, *arguments, **options):
            rows = sum(chunk.rows for chunk in objective_of(subject).chunks)
            product = kind == "forms" and subject.curvature == "hessian"
            self.counts["products" if product else kind] += rows
            return method(subject, *arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    def total(self):
        for linear in self.linear:  # with its gradient, or the forward pass alone
            kind = "gradients" if "gradient" in vars(linear) else "values"
            self.counts[kind] += sum(chunk.rows for chunk in linear.objective.chunks)
        return self.counts


@pytest.mark.parametrize("name", [t["name"] for t in TABLES if t["name"] not in ("uncounted", "averaging")])
def test_work_is_counted_as_it_is_done(study, trained, monkeypatch, name):
    problem = get(study.problem)
    checkpoint = load_checkpoint(checkpoint_path(trained, 3))
    context = StrategyContext(problem, problem.load(), problem.model(), study.training, checkpoint, 0)
    strategy = start_strategy(next(s for s in study.strategies if s.name == name), context)
    counter = Counter(monkeypatch)
    for i in range(4):
        strategy.step(i / 4)
    work = context.work.as_dict()
    rows = 48 if name in ("debiased", "hf", "part", "ratio", "plain", "adamqlr", "undamped", "lbfgs") else 24
    rows = {"own-batch": 32, "sgdqlr": 96}.get(name, rows)
    assert work.pop("samples") == 4 * rows
    assert work == counter.total()
    assert all(work[kind] > 0 for kind in KINDS.get(name, ("gradients",)))
    equivalents = (work["values"] + 3 * work["gradients"] + 2 * work["forms"] + 4 * work["products"]) / 72
    assert context.work.equivalents(24) == pytest.approx(equivalents)


KINDS = {
    "hf": ("gradients", "values", "products"),
    "adamqlr": ("gradients", "values", "forms"),
    "sgdqlr": ("gradients", "values", "products"),
    "undamped": ("gradients", "forms"),
}


def test_the_process_clock_stands_still_while_a_step_sleeps(monkeypatch):
    """Steps of 0.25 s of the wall and 0.125 s of the processor, on clocks moved by hand."""
    processor, wall = [7.0], [1000.0]
    clocks = SimpleNamespace(perf_counter=lambda: wall[0], process_time=lambda: processor[0])
    monkeypatch.setattr(clock_module, "time", clocks)
    study = study_of(custom("Plain"))
    for kind, scored in (("wall", 0.25), ("process", 0.125)):
        clock = clock_module.Clock(study.model_copy(update={"clock": kind}), 3.0)
        with clock:
            wall[0] += 0.25
            processor[0] += 0.125
        assert clock.seconds == 3.0 + scored


@pytest.mark.parametrize("more", [{"device": "cuda"}, {"threads": 2}])
def test_processor_time_is_that_of_one_thread_on_a_cpu(more):
    table = study_of(custom("Plain")).model_dump(exclude_none=True) | {"clock": "process"} | more
    with pytest.raises(ValueError, match="clock"):
        Study.model_validate(table)
