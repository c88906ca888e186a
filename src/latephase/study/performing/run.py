"""One run: a strategy from a checkpoint with a seed, under the budget."""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...problems import Problem, Splits, get
from ...records import (
    DamagedFile,
    Journal,
    checksum,
    is_ours,
    set_aside,
    set_aside_unless_file,
    told,
    using,
    warnings_into,
    write_json,
)
from ..config import Study
from ..results import JOURNALS, RECORDS, read_sealed_attempt, wrong_folder
from ..strategies import Strategy, StrategyContext, copied, start_strategy
from .checkpoint import checkpoint_path, load_checkpoint
from .clock import Clock
from .evaluate import Evaluator
from .identity import code_version, identity_of, training_identity
from .runs import RunKey

WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Conditions:
    """All that the runs of a study share.

    Attributes:
        directory: the study's folder.
        study: the study.
        budget: in the study's unit.
        training_share: the budget as a share of the training.
        environment: written beside the results.
        code: version of the code that the study began with; workers may start long after.
    """

    directory: Path
    study: Study
    budget: float
    training_share: float
    environment: dict[str, Any]
    code: str = field(default_factory=code_version)

    def identity(self, key: RunKey) -> str:
        """The identity of a run."""
        return identity_of(self.study, key.strategy, key.checkpoint_epoch, key.seed, self.budget, self.code)


def make_way(folder: Path) -> None:
    """Set aside what a run that is to begin could not go on from: damaged journals, and what is no file."""
    if wrong_folder(folder):
        set_aside(folder)
    for name in (*RECORDS, "environment.json", "error.txt", "warnings.txt"):
        set_aside_unless_file(folder / name)
    for name in JOURNALS:
        try:
            read_sealed_attempt(folder / name, sealed=True)
        except DamagedFile:
            set_aside(folder / name)


def perform_run(conditions: Conditions, key: RunKey) -> str:
    """Perform a run and write its folder; an error ends this run only.

    Args:
        conditions: what the runs share.
        key: which run.

    Returns:
        "finished" or "failed".

    Raises:
        OSError: a file of the run cannot be written, or the disk is full; the run is retried when the study goes on.
    """
    folder = conditions.directory / "runs" / key.run_id
    strategy = key.strategy
    make_way(folder)
    what = {
        "run_id": key.run_id,
        "identity": conditions.identity(key),
        "problem": conditions.study.problem,
        "checkpoint_epoch": key.checkpoint_epoch,
        "strategy": strategy.name,
        "kind": strategy.kind,
        "label": strategy.label,
        "seed": key.seed,
        "unit": conditions.study.budget.unit,
        "budget": conditions.budget,
    }
    write_json(folder / "run.json", what)
    write_json(folder / "environment.json", conditions.environment)
    write_json(folder / "status.json", {"status": "running"})
    for name in ("error.txt", "warnings.txt"):
        with using(folder / name):
            (folder / name).unlink(missing_ok=True)
    run = ActiveRun(conditions, key)
    record: dict[str, Any]
    try:
        with warnings_into(folder / "warnings.txt"):
            run.go()
    except (Exception, SystemExit) as error:  # a strategy of the user's own may do anything
        if isinstance(error, OSError) and is_ours(error):
            raise
        record = {"status": "failed", "error": told(error, folder)}
    else:
        record = {"status": "finished"}
    finally:
        run.close()
    write_json(folder / "status.json", record | {"run": checksum(what)} | run.record())
    return record["status"]


def fresh_start(problem: Problem, seed: int) -> dict[str, Any]:
    """A checkpoint at epoch 0 with fresh weights, drawn by the seed."""
    torch.manual_seed(seed)
    return {"epoch": 0, "steps": 0, "model": copied(problem.model().state_dict()), "optimizer": None}


class ActiveRun:
    """A run under way: it warms up, steps until the budget is spent, and writes its journals.

    Args:
        conditions: what the runs share.
        key: which run.
    """

    def __init__(self, conditions: Conditions, key: RunKey):
        self.conditions, self.key, self.unit = conditions, key, conditions.study.budget.unit
        folder = conditions.directory / "runs" / key.run_id
        self.journal = Journal(folder / "rows.jsonl")
        try:
            self.clocks = Journal(folder / "clocks.jsonl")
        except BaseException:
            self.journal.close()
            raise
        self.clock, self.evaluation_clock = Clock(conditions.study.device), Clock(conditions.study.device)
        self.steps, self.warmup_seconds, self.spent = 0, 0.0, 0.0
        self.within: dict[str, float] = {}
        count = conditions.study.evaluations
        self.due = [conditions.budget * i / count for i in range(count + 1)]

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

    def go(self) -> None:
        """Warm up, then step until the budget is spent.

        What is evaluated for a point of the budget is the state that the strategy held then: that before the step which
        was under way. So all strategies are evaluated at the same points, and nothing after the budget counts.
        """
        study, device = self.conditions.study, self.conditions.study.device
        problem: Problem = get(study.problem, **study.problem_options)
        splits = self.data(problem).to(device)
        checkpoint = self.initial_state(problem)
        model, share = problem.model().to(device), self.conditions.training_share
        context = StrategyContext(problem, splits, model, study.training, checkpoint, self.key.seed, share)
        self._warm_up(context)
        context = dataclasses.replace(context, work=type(context.work)())
        strategy = start_strategy(self.key.strategy, context)
        evaluate = self.evaluator(problem, context.model, splits)
        with self.evaluation_clock:
            metrics = evaluate(checkpoint["model"])
        self.log(self.due.pop(0), strategy.lr, metrics, context)
        self._steps(strategy, context, evaluate, metrics)

    def data(self, problem: Problem) -> Splits:
        """What the run may look at."""
        return problem.load()

    def initial_state(self, problem: Problem) -> dict[str, Any]:
        """What the strategy starts from: the checkpoint, or weights of the seed's own."""
        if self.conditions.study.fresh_weights and self.key.checkpoint_epoch == 0:
            return fresh_start(problem, self.key.seed)
        conditions, epoch = self.conditions, self.key.checkpoint_epoch
        identity = training_identity(conditions.study, conditions.code)
        path = checkpoint_path(conditions.directory, epoch)
        with using(path):  # the folder may have been moved
            return load_checkpoint(path, identity, epoch)

    def evaluator(self, problem: Problem, model: nn.Module, splits: Splits) -> Evaluator:
        """What is measured."""
        return Evaluator(problem, model, splits)

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
            self.log(self.due.pop(0), lr, metrics, context, counts)

        while self.due:
            before, lr, counts = copied(strategy.held()), strategy.lr, self._counts(context)
            with self.clock:
                said = strategy.step(self.spent / self.conditions.budget)
            ended = self._spent(context, self.steps + 1)
            if ended <= self.spent:
                raise ValueError(
                    f"strategy {self.key.strategy.name} counted no work in a step, so that a budget in gradients never "
                    "ends; count in context.work, or choose another unit"
                )
            while self.due and self.due[0] < ended:
                evaluate_at(before, lr, counts)
            self.steps += 1
            if said is not None:
                seconds = {"step_seconds": said.get("seconds")} if self.unit == "seconds" else {}
                said = {name: value for name, value in said.items() if name != "seconds"}
                self.journal.write("step", **{**said, **seconds, "spent": ended, "step": self.steps})
            while self.due and self.due[0] == ended:  # the step ended at that very point
                evaluate_at(copied(strategy.held()), strategy.lr, self._counts(context))
            self.spent = self._spent(context, self.steps)  # what `finished` took included

    def _spent(self, context: StrategyContext, steps: int) -> float:
        if self.unit == "seconds":
            return self.clock.seconds
        return float(steps) if self.unit == "steps" else self._equivalents(context)

    def _warm_up(self, context: StrategyContext) -> None:
        """A few untimed steps, after which model and random numbers are put back bit for bit when the run starts."""
        clock = Clock(self.conditions.study.device)
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

    def log(
        self,
        spent: float,
        lr: float,
        metrics: dict[str, float | None],
        context: StrategyContext,
        counts: dict[str, float] | None = None,
    ) -> None:
        """Write an evaluation to the journals, off the clock.

        Args:
            spent: the point of the budget.
            lr: the strategy's learning rate there.
            metrics: what was measured.
            context: the strategy's.
            counts: of the work until then. Default: until now.
        """
        started = time.perf_counter()
        self.within = counts or self._counts(context)
        self.journal.write("evaluation", spent=spent, step=self.steps, lr=lr, **metrics)
        self.evaluation_clock.seconds += time.perf_counter() - started
        self.clocks.write(
            "clock",
            spent=spent,
            step=self.steps,
            scored_seconds=self.clock.seconds,
            evaluation_seconds=self.evaluation_clock.seconds,
        )
