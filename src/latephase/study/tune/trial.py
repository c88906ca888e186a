"""One trial: a training of the problem from its initialisation, by a strategy, under the budget; in a process."""

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from torch import Tensor, nn

from ...objective import forked
from ...problems import Problem, Splits
from ...records import is_ours, told, warnings_into, write_json
from ..performing import ActiveRun, Conditions, Evaluator, RunKey, fresh_start, make_way
from ..strategies import StrategyContext

APART = 2**31
"""Between the seeds of studies and those of trials: a study repeats what was chosen with other weights and orders.

Torch's generator on the CPU uses 32 bits of its seed."""


@dataclass(frozen=True)
class TrialKey(RunKey):
    """Which trial: a strategy with the values that were drawn, and its number; starts from "epoch 0"."""

    number: int

    @property
    def run_id(self) -> str:
        """Name of the trial's folder."""
        return f"{self.strategy.name}_trial-{self.number:04d}"


class Stopped(Exception):
    """Successive halving stopped the trial."""


class Diverged(Exception):
    """The metric is not a finite number."""


class ValidationEvaluator(Evaluator):
    """Loss and metrics on the validation split, and on no other."""

    def __call__(self, state: dict[str, Tensor]) -> dict[str, float | None]:
        """Evaluate a state dict of the model; random numbers as in `Evaluator`."""
        self._model.load_state_dict(state)
        with forked(0, self._devices):
            return self._measure("valid", self._splits.valid)


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
    run = _Trial(conditions, key, metric, points, parent)
    try:
        record: dict[str, Any] = {"outcome": "finished"}
        with warnings_into(folder / "warnings.txt"):
            run.go()
    except Stopped:
        record = {"outcome": "stopped"}
    except Diverged as error:
        record = {"outcome": "diverged", "error": str(error)}
    except (Exception, SystemExit) as error:  # a strategy of the user's own may do anything
        if isinstance(error, OSError) and is_ours(error):
            raise
        record = {"outcome": "failed", "error": told(error, folder)}
    finally:
        run.close()
    record |= {"start": run.start, "value": run.value, "at": run.at} | run.record()
    write_json(folder / "status.json", record)
    parent.send(("end", record))
    os._exit(0)  # at once: a trial has nothing to clean up


class _Trial(ActiveRun):
    """The state of one trial: a run that starts from fresh weights and does not see the test split."""

    def __init__(
        self, conditions: Conditions, key: TrialKey, metric: str, points: list[float], parent: Connection
    ) -> None:
        super().__init__(conditions, key)
        self.due, self.places, self.metric, self.parent = [0.0, *points], len(points), metric, parent
        self.start: float | None = None
        self.value: float | None = None
        self.at: float | None = None

    def data(self, problem: Problem) -> Splits:
        """The problem's data without the test split, so that nothing can look at it."""
        whole = problem.load()
        return Splits(whole.train, whole.valid, ())

    def initial_state(self, problem: Problem) -> dict[str, Any]:
        """Fresh weights, the same for all trials."""
        return fresh_start(problem, self.key.seed)

    def evaluator(self, problem: Problem, model: nn.Module, splits: Splits) -> ValidationEvaluator:
        """What is measured: the validation split alone."""
        return ValidationEvaluator(problem, model, splits)

    def log(
        self,
        spent: float,
        lr: float,
        metrics: dict[str, float | None],
        context: StrategyContext,
        counts: dict[str, float] | None = None,
    ) -> None:
        """Log an evaluation; at a rung, ask whether to go on.

        Raises:
            Stopped: not.
            Diverged: the metric is not finite.
        """
        super().log(spent, lr, metrics, context, counts)
        value, place = metrics[self.metric], self.places - len(self.due)
        if value is None:
            raise Diverged(f"{self.metric} is not finite after {spent:g} {self.unit}")
        if place == 0:
            self.start = value
            return
        self.value, self.at = value, spent
        if self.due:
            self.parent.send(("at", place - 1, value))
            if not self.parent.recv():
                raise Stopped
