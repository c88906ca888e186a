"""One trial: a training of the problem from its initialisation, by a strategy, under the budget; in a process."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from ...problems import Problem, Splits
from ...records import write_json
from ..performing import ActiveRun, Conditions, Evaluator, fresh_start, make_way
from ..strategies import StrategyTable

APART = 2**31
"""Between the seeds of studies and those of trials: a study repeats what was chosen with other weights and orders.

Torch's generator on the CPU uses 32 bits of its seed."""


@dataclass(frozen=True)
class TrialKey:
    """Which trial: a strategy with the values that were drawn, the seed, and its number."""

    strategy: StrategyTable
    seed: int
    number: int

    @property
    def run_id(self) -> str:
        """Name of the trial's folder."""
        return f"{self.strategy.name}_trial-{self.number:04d}"


class Rungs:
    """What trials are compared by, point after point, and whether the parent lets this one go on.

    Args:
        metric: the field of an evaluation row that trials are compared by.
        unit: of the budget.
        last: the number of the last point; the start is number 0.
        parent: is told ("at", rung, value) at each rung, and answers whether to go on.
    """

    def __init__(self, metric: str, unit: str, last: int, parent: Connection):
        self.metric, self.unit, self.last, self.parent = metric, unit, last, parent
        self.start: float | None = None
        self.value: float | None = None
        self.at: float | None = None
        self.error = ""
        self._passed = -1

    def __call__(self, spent: float, metrics: dict[str, Any]) -> str | None:
        """How the trial ends at a point: "stopped" by successive halving, or "diverged"; None where it goes on."""
        value, self._passed = metrics[self.metric], self._passed + 1
        if value is None:
            self.error = f"{self.metric} is not finite after {spent:g} {self.unit}"
            return "diverged"
        if self._passed == 0:
            self.start = value
            return None
        self.value, self.at = value, spent
        if self._passed == self.last:
            return None
        self.parent.send(("at", self._passed - 1, value))
        return None if self.parent.recv() else "stopped"


def trial_run(conditions: Conditions, key: TrialKey, rungs: Rungs, points: Sequence[float]) -> ActiveRun:
    """A trial as a run: from fresh weights, the same for all trials; the test split is not there to be looked at.

    Args:
        conditions: what the trials share.
        key: which trial.
        rungs: told what was measured at each point.
        points: where to evaluate, in the unit of the budget; the last is the budget.
    """
    return ActiveRun(
        conditions,
        key,
        data=_without_test,
        start=lambda problem: fresh_start(problem, key.seed),
        evaluator=partial(Evaluator, only="valid"),
        due=[0.0, *points],
        on_point=rungs,
    )


def _without_test(problem: Problem) -> Splits:
    whole = problem.load()
    return Splits(whole.train, whole.valid, ())


def perform_trial(conditions: Conditions, key: TrialKey, metric: str, points: list[float], parent: Connection) -> None:
    """Perform a trial, write its folder and report to the parent; an error ends this trial only.

    Sends ("at", place, value) at each point but the last and waits for whether to go on, then ("end", record): its
    outcome ("finished", "stopped", "diverged" or "failed"), and what the status file of a run holds. Meant for a
    process of its own, which it ends.

    Args:
        conditions: what the trials share.
        key: which trial.
        metric: the field of an evaluation row that trials are compared by.
        points: where to evaluate, in the unit of the budget; the last is the budget.
        parent: where to report.

    Raises:
        OSError: a file of the trial cannot be written, or the disk is full; the trial begins anew another time.
    """
    folder = conditions.directory / "runs" / key.run_id
    make_way(folder)
    write_json(folder / "run.json", {"run_id": key.run_id, "strategy": key.strategy.model_dump(), "seed": key.seed})
    rungs = Rungs(metric, conditions.study.budget.unit, len(points), parent)
    run = trial_run(conditions, key, rungs, points)
    outcome, error = run.perform()
    error = error or rungs.error
    record = {"outcome": outcome} | ({"error": error} if error else {})
    record |= {"start": rungs.start, "value": rungs.value, "at": rungs.at} | run.record()
    write_json(folder / "status.json", record)
    parent.send(("end", record))
    os._exit(0)  # at once: a trial has nothing to clean up
