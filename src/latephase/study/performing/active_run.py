"""A run under way, of a study or of a tuning: warm-up, steps, evaluations at the points of the budget, journals."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from ...problems import Problem, Splits, get
from ...records import Journal, is_ours, told, warnings_into
from ..config import Study
from ..results import JOURNALS
from ..strategies import Strategy, StrategyContext, StrategyTable, copied, start_strategy
from .clock import Clock
from .evaluate import Evaluator
from .runs import Conditions

WARM_UP_STEPS = 3


class Performed(Protocol):
    """Which run it is, of a study or of a tuning."""

    @property
    def run_id(self) -> str:
        """Name of its folder."""
        ...

    @property
    def strategy(self) -> StrategyTable:
        """Its strategy."""
        ...

    @property
    def seed(self) -> int:
        """Its seed."""
        ...


def _goes_on(spent: float, metrics: dict[str, Any]) -> str | None:
    """Ends no run."""
    del spent, metrics


class ActiveRun:
    """A run under way: it warms up, steps until the budget is spent, and writes its journals.

    Args:
        conditions: what the runs share.
        key: which run.
        data: what of the problem's data it may look at.
        start: the checkpoint that its strategy starts from.
        evaluator: makes of problem, model and data what measures a state.
        due: points of the budget at which it is evaluated, in its unit, in order.
        on_point: told the point and what was measured there; what it returns, where that is not None, is how the run
            ends there. Default: it goes on.
    """

    def __init__(
        self,
        conditions: Conditions,
        key: Performed,
        *,
        data: Callable[[Problem], Splits],
        start: Callable[[Problem], dict[str, Any]],
        evaluator: Callable[[Problem, nn.Module, Splits], Evaluator],
        due: Sequence[float],
        on_point: Callable[[float, dict[str, Any]], str | None] = _goes_on,
    ):
        self.conditions, self.key, self.unit = conditions, key, conditions.study.budget.unit
        self._data, self._start, self._evaluator, self._on_point = data, start, evaluator, on_point
        self.folder = conditions.directory / "runs" / key.run_id
        self.journal = Journal(self.folder / "rows.jsonl")
        try:
            self.clocks = Journal(self.folder / "clocks.jsonl")
        except BaseException:
            self.journal.close()
            raise
        self.clock, self.evaluation_clock = Clock(conditions.study), Clock(conditions.study)
        self.steps, self.warmup_seconds, self.spent = 0, 0.0, 0.0
        self.within: dict[str, float] = {}
        self.due, self.ended = list(due), ""

    def close(self) -> None:
        """Close the journals."""
        try:
            self.journal.close()
        finally:
            self.clocks.close()

    def record(self) -> dict[str, Any]:
        """What the status file says of a run that ended; counts are of the steps within the budget."""
        return self.within | {
            "journals": dict(zip(JOURNALS, (self.journal.end, self.clocks.end), strict=True)),
            "spent": self.spent,
            "overshoot": max(0.0, self.spent - self.conditions.budget),
            "scored_seconds": self.clock.seconds,
            "warmup_seconds": self.warmup_seconds,
            "cold_seconds": self.clock.seconds + self.warmup_seconds,
            "evaluation_seconds": self.evaluation_clock.seconds,
        }

    def perform(self) -> tuple[str, str]:
        """Perform it and close the journals: how it ended, as of `go` or "failed", and the error of that.

        Raises:
            OSError: a file of the run cannot be written, or the disk is full.
        """
        try:
            with warnings_into(self.folder / "warnings.txt"):
                return self.go(), ""
        except (Exception, SystemExit) as error:  # a strategy of the user's own may do anything
            if isinstance(error, OSError) and is_ours(error):
                raise
            return "failed", told(error, self.folder)
        finally:
            self.close()

    def go(self) -> str:
        """Warm up, then step until the budget is spent.

        What is evaluated for a point of the budget is the state that the strategy held then: that before the step which
        was under way. So all strategies are evaluated at the same points, and nothing after the budget counts.

        Returns:
            "finished", or how `on_point` ended it.
        """
        study, device = self.conditions.study, self.conditions.study.device
        problem: Problem = get(study.problem, **study.problem_options)
        splits = self._data(problem).to(device)
        checkpoint = self._start(problem)
        model, share = problem.model().to(device), self.conditions.training_share
        budget = budget_of(study, self.conditions.budget)
        context = StrategyContext(problem, splits, model, study.training, checkpoint, self.key.seed, share, budget)
        self._warm_up(context)
        context = dataclasses.replace(context, work=type(context.work)())
        strategy = start_strategy(self.key.strategy, context)
        evaluate = self._evaluator(problem, context.model, splits)
        with self.evaluation_clock:
            metrics = evaluate(checkpoint["model"])
        self._log(strategy.lr, metrics, self._counts(context))
        self._steps(strategy, context, evaluate, metrics)
        return self.ended or "finished"

    def _steps(self, strategy: Strategy, context: StrategyContext, evaluate: Evaluator, metrics: dict) -> None:
        evaluated = 0

        def evaluate_at(held: dict[str, Tensor], lr: float, counts: dict[str, float]) -> None:
            """Log what was held at the next point; a state that is held at several is evaluated once."""
            nonlocal evaluated, metrics
            if evaluated != self.steps:
                with self.clock:
                    state = strategy.finished(held)
                with self.evaluation_clock:
                    metrics, evaluated = evaluate(state), self.steps
            self._log(lr, metrics, counts)

        while self.due:
            before, lr, counts = copied(strategy.held()), strategy.lr, self._counts(context)
            with self.clock:
                said = strategy.step(self.spent / self.conditions.budget)
            spent = self._spent(context, self.steps + 1)
            if spent <= self.spent:
                raise ValueError(
                    f"strategy {self.key.strategy.name} counted no work in a step, so that a budget in gradients never "
                    "ends; count in context.work, or choose another unit"
                )
            while self.due and self.due[0] < spent:
                evaluate_at(before, lr, counts)
            if self.ended:
                return
            self.steps += 1
            if said is not None:
                seconds = {"step_seconds": said.get("seconds")} if self.unit == "seconds" else {}
                said = {name: value for name, value in said.items() if name != "seconds"}
                self.journal.write("step", **{**said, **seconds, "spent": spent, "step": self.steps})
            while self.due and self.due[0] == spent:  # the step ended at that very point
                evaluate_at(copied(strategy.held()), strategy.lr, self._counts(context))
            if self.ended:
                return
            self.spent = self._spent(context, self.steps)  # what `finished` took included

    def _spent(self, context: StrategyContext, steps: int) -> float:
        if self.unit == "seconds":
            return self.clock.seconds
        return float(steps) if self.unit == "steps" else self._equivalents(context)

    def _warm_up(self, context: StrategyContext) -> None:
        """A few untimed steps, after which model and random numbers are put back bit for bit when the run starts."""
        clock = Clock(self.conditions.study)
        with clock:
            strategy = start_strategy(self.key.strategy.warm_up_version(), context)
            for start in self.key.strategy.begins:
                for _ in range(WARM_UP_STEPS):
                    strategy.step(start)
            strategy.finished(copied(strategy.held()))
        self.warmup_seconds = clock.seconds

    def _counts(self, context: StrategyContext) -> dict[str, float]:
        work, gradients = context.work, self._equivalents(context)
        return {"steps": self.steps, "samples": work.samples, "gradients": gradients, "products": work.products}

    def _equivalents(self, context: StrategyContext) -> float:
        return context.work.equivalents(context.training.batch_size or context.rows)

    def _log(self, lr: float, metrics: dict[str, Any], counts: dict[str, float]) -> None:
        """Write an evaluation at the next point to the journals, off the clock; none is due where it ends the run.

        Args:
            lr: the strategy's learning rate there.
            metrics: what was measured.
            counts: of the work until then.
        """
        started, spent = time.perf_counter(), self.due.pop(0)
        self.within = counts
        self.journal.write("evaluation", spent=spent, step=self.steps, lr=lr, **metrics)
        self.evaluation_clock.seconds += time.perf_counter() - started
        self.clocks.write(
            "clock",
            spent=spent,
            step=self.steps,
            scored_seconds=self.clock.seconds,
            evaluation_seconds=self.evaluation_clock.seconds,
        )
        if (ended := self._on_point(spent, metrics)) is not None:
            self.ended, self.due = ended, []


def budget_of(study: Study, amount: float) -> tuple[float, str] | None:
    """What a run may spend, as strategies that count for themselves are told; nothing where it is in gradients."""
    unit = study.budget.unit
    if unit == "seconds" and study.clock == "process":
        unit = "processor_seconds"
    return None if unit == "gradients" else (amount, unit)
