"""One trial: what it is compared by and where, what it may look at, and how it ends."""

import math
from dataclasses import replace
from multiprocessing import Pipe

import pytest
import torch
from small_problems import noisy
from small_studies import custom, first_order
from test_tune_config import tuning_table
from torch import nn

from latephase.problems import Splits
from latephase.records.files import read_journal
from latephase.study.performing.runs import Conditions
from latephase.study.strategies import Strategy
from latephase.study.tune.config import parse_tuning
from latephase.study.tune.trial import APART, Rungs, TrialKey, trial_run


class Untouchable:
    """A split that cannot be looked at in any way."""

    def __getattribute__(self, name):
        raise AssertionError(f"the test split was looked at: {name}")

    def __getitem__(self, key):
        raise AssertionError("the test split was looked at")

    __len__ = __iter__ = __getitem__


class OnlyMoved(tuple):
    """A test split that holds nothing but what must not be read."""

    def __new__(cls):
        return super().__new__(cls, (Untouchable(), Untouchable()))


def guarded():
    """The noisy problem with a test split that raises when anything reads it."""
    problem = noisy()
    splits = problem.load()
    return replace(problem, name="guarded", load=lambda: Splits(splits.train, splits.valid, OnlyMoved()))


class Recorder(Strategy):
    """SGD that keeps what was held before each step, and the share of the budget at which it was asked."""

    kept: list = []  # noqa: RUF012

    def __init__(self, context, lr=0.05, spoil=math.inf):
        super().__init__(context)
        Recorder.kept = []
        assert context.splits.test == ()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.batches, self.spoil = context.epochs(), spoil

    def step(self, share):
        Recorder.kept.append((share, {name: t.clone() for name, t in self.model.state_dict().items()}))
        self.optimizer.step(next(self.batches)[0])
        if share >= self.spoil:
            nn.init.constant_(next(self.model.parameters()), math.nan)


@pytest.fixture
def trial(tmp_path):
    """A trial of a strategy that was told in advance what the rungs will answer; and what it says."""
    opened = []

    def make(strategy, answers=(True,) * 9, **changes):
        strategy = strategy | {
            "search": {"lr" if strategy["kind"] == "first_order" else "options.lr": {"low": 0.01, "high": 1.0}}
        }
        tuning = parse_tuning(tuning_table(strategy, **changes), "small")
        ours, theirs = Pipe()
        for answer in answers:
            ours.send(answer)
        key = TrialKey(tuning.study.strategies[0], APART, len(opened))
        conditions = Conditions(tmp_path, tuning.study, tuning.budget, 1.0, {})
        rungs = Rungs(tuning.tune.metric, tuning.study.budget.unit, len(tuning.points), theirs)
        opened.append(trial_run(conditions, key, rungs, tuning.points))
        return opened[-1], ours, rungs

    yield make
    for run in opened:
        run.close()


def said(pipe):
    found = []
    while pipe.poll():
        found.append(pipe.recv())
    return found


def rows_of(tmp_path, number=0, name="own"):
    return read_journal(tmp_path / "runs" / f"{name}_trial-{number:04d}" / "rows.jsonl")


def test_trials_are_compared_after_equal_budgets_on_what_they_held_then(trial, tmp_path):
    run, pipe, rungs = trial(custom("Recorder", module="test_tune_trial"))
    assert run.go() == "finished"
    messages, rows = said(pipe), [row for row in rows_of(tmp_path) if row["event"] == "evaluation"]
    assert [row["spent"] for row in rows] == [0.0, 2.0, 4.0, 8.0]
    assert messages == [("at", 0, rows[1]["valid_loss"]), ("at", 1, rows[2]["valid_loss"])]
    assert (rungs.start, rungs.value, rungs.at) == (rows[0]["valid_loss"], rows[3]["valid_loss"], 8.0)
    problem, held = noisy(), Recorder.kept[2][1]  # before the third step: after two
    model = problem.model().eval()
    model.load_state_dict(held)
    objective = problem.objective(model, problem.load().valid)
    assert float(objective.value()) == pytest.approx(rows[1]["valid_loss"], rel=1e-6)  # float32 sums in another order


def test_the_test_split_is_never_read_and_only_the_validation_split_measured(trial, tmp_path):
    run, *_ = trial(first_order(name="own"), problem="test_tune_trial:guarded")
    run.go()
    with pytest.raises(AssertionError, match="looked at"):
        guarded().load().test[0][0]
    keys = {key for row in rows_of(tmp_path) for key in row}
    assert {"valid_loss", "valid_accuracy"} <= keys
    assert not [key for key in keys if key.startswith(("test", "train"))]


def test_a_trial_that_a_rung_stops_ends_there(trial, tmp_path):
    run, pipe, rungs = trial(custom("Recorder", module="test_tune_trial"), answers=[True, False])
    assert run.go() == "stopped"
    assert len(said(pipe)) == 2
    assert rungs.at == 4.0
    assert len(Recorder.kept) == 4
    assert run.record()["steps"] == 4


@pytest.mark.parametrize(("spoil", "at"), [(0.0, 2), (0.6, 8)])
def test_a_trial_diverges_where_the_metric_is_no_number(trial, spoil, at):
    run, _, rungs = trial(custom("Recorder", module="test_tune_trial", spoil=spoil))
    assert run.go() == "diverged"
    assert rungs.error == f"valid_loss is not finite after {at} steps"


def test_trials_start_from_the_same_fresh_weights_and_other_than_the_studys(trial, tmp_path):
    starts = []
    for _ in range(2):
        run, *_ = trial(custom("Recorder", module="test_tune_trial"))
        run.go()
        starts.append(Recorder.kept[0][1])
    assert all(torch.equal(tensor, starts[1][name]) for name, tensor in starts[0].items())
    assert rows_of(tmp_path, 0) == rows_of(tmp_path, 1)
    torch.manual_seed(0)
    assert not torch.equal(noisy().model().state_dict()["0.weight"], starts[0]["0.weight"])


def test_a_rung_within_a_long_step_has_what_was_held_before_it(trial, tmp_path, monkeypatch):
    from small_strategies import NOW

    from latephase.study.performing import clock as clock_module

    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: NOW[0])
    tune = {"budget": {"unit": "seconds", "amount": 8.0}}
    run, *_ = trial(custom("Timed", steps=[0.0, 0.0, 0.0], finish=0.0), tune=tune)
    NOW[0] = 0.0
    with pytest.raises(ValueError, match="counted no work"):  # a clock that stands still is no budget
        run.go()
    run, pipe, _ = trial(custom("Timed", steps=[0.1, 1.5, 3.0, 1.0, 5.0], finish=0.0), tune=tune)
    run.go()
    messages = said(pipe)
    # Steps end at 0.1, 1.6, 4.6, 5.6, 10.6: the rungs at 2 and 4 seconds both fall into the third one.
    assert [message[1] for message in messages] == [0, 1]
    assert messages[0][2] == messages[1][2]
    assert [row["step"] for row in rows_of(tmp_path, 1) if row["event"] == "evaluation"] == [0, 2, 2, 4]
