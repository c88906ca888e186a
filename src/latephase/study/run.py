"""One run: a strategy from a checkpoint with a seed, under the budget."""

import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..problems import Problem, Splits, get
from ..problems.sampling import permutation
from .checkpoint import checkpoint_path, load_checkpoint
from .clock import Clock
from .config import HessianFreeSteps, StrategyConfig, Study
from .evaluate import Evaluator
from .results import run_id
from .store import Journal, read_json, write_json
from .strategies import Strategy, start_strategy

WARM_UP_STEPS = {"sgd": 5, "hessian_free": 1}
WARM_UP_ITERATIONS = 2


@dataclass(frozen=True)
class RunKey:
    """Which run: epoch of the checkpoint, strategy, seed."""

    checkpoint_epoch: int
    strategy: StrategyConfig
    seed: int

    @property
    def run_id(self) -> str:
        """Name of the run's folder."""
        return run_id(self.checkpoint_epoch, self.strategy.name, self.seed)


def plan_runs(study: Study) -> list[RunKey]:
    """All runs, strategies innermost and in a fixed random order.

    So slow drifts of the machine meet all strategies alike, and where two runs share it, every strategy has every other
    beside it.
    """
    return [
        RunKey(epoch, study.strategies[position], seed)
        for seed in study.seeds
        for epoch in study.checkpoints
        for position in permutation(len(study.strategies), seed, epoch).tolist()
    ]


def is_finished(directory: Path, key: RunKey) -> bool:
    """Whether the run is done and need not run again."""
    return (read_json(directory / "runs" / key.run_id / "status.json") or {}).get("status") == "finished"


def perform_run(directory: Path, study: Study, key: RunKey, budget: float, environment: dict[str, Any]) -> str:
    """Perform a run and write its folder; an error ends this run only.

    Args:
        directory: the study's folder.
        study: the study.
        key: which run.
        budget: seconds on the clock.
        environment: written beside the results.

    Returns:
        "finished" or "failed".
    """
    folder = directory / "runs" / key.run_id
    strategy = key.strategy
    write_json(
        folder / "run.json",
        {
            "run_id": key.run_id,
            "problem": study.problem,
            "checkpoint_epoch": key.checkpoint_epoch,
            "strategy": strategy.name,
            "kind": strategy.kind,
            "label": strategy.label,
            "seed": key.seed,
            "budget_seconds": budget,
        },
    )
    write_json(folder / "environment.json", environment)
    write_json(folder / "status.json", {"status": "running"})
    (folder / "error.txt").unlink(missing_ok=True)
    run = _Run(directory, study, key, budget)
    try:
        run.go()
    except Exception as error:
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        record = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    else:
        record = {"status": "finished"}
    finally:
        run.journal.close()
    write_json(
        folder / "status.json",
        record
        | {
            "seconds": run.clock.seconds,
            "overshoot_seconds": max(0.0, run.clock.seconds - budget),
            "steps": run.steps_within_budget,
            "warmup_seconds": run.warmup_seconds,
        },
    )
    return record["status"]


def warm_up_version(strategy: StrategyConfig) -> StrategyConfig:
    """The strategy with few iterations of conjugate gradients, which call all that many call."""
    if isinstance(strategy, HessianFreeSteps):
        return strategy.model_copy(update={"options": strategy.options | {"cg_max_iter": WARM_UP_ITERATIONS}})
    return strategy


class _Run:
    """The state of one run."""

    def __init__(self, directory: Path, study: Study, key: RunKey, budget: float):
        self.directory, self.study, self.key, self.budget = directory, study, key, budget
        self.journal = Journal(directory / "runs" / key.run_id / "rows.jsonl")
        self.clock = Clock()
        self.steps = 0
        self.steps_within_budget = 0
        self.warmup_seconds = 0.0
        self.due = [budget * i / study.evaluations for i in range(study.evaluations + 1)]

    def go(self) -> None:
        """Warm up on a copy, then step until the budget is spent.

        What is evaluated for second t of the budget is the state that the strategy held then: that before the step
        which was under way. So all strategies are evaluated at the same seconds, and nothing after the budget counts.
        """
        problem: Problem = get(self.study.problem)
        splits: Splits = problem.load()
        checkpoint = load_checkpoint(checkpoint_path(self.directory, self.key.checkpoint_epoch))
        model = problem.model()
        arguments = (self.study, problem, model, splits, checkpoint, self.key.seed)
        self._warm_up(start_strategy(warm_up_version(self.key.strategy), *arguments))
        evaluate = Evaluator(problem, model, splits)
        strategy = start_strategy(self.key.strategy, *arguments)
        metrics: dict[str, float | None] = evaluate(checkpoint["model"])
        self._log(self.due.pop(0), strategy.lr, metrics)
        evaluated = 0
        while self.due:
            before = {name: tensor.detach().clone() for name, tensor in strategy.model.state_dict().items()}
            lr = strategy.lr
            with self.clock:
                said = strategy.step(self.clock.seconds / self.budget)
            while self.due and self.due[0] < self.clock.seconds:
                if evaluated != self.steps:
                    metrics, evaluated = evaluate(before), self.steps
                self._log(self.due.pop(0), lr, metrics)
            self.steps += 1
            if said is not None:
                said = said | {"seconds": self.clock.seconds, "step_seconds": said["seconds"]}
                self.journal.write("step", step=self.steps, **said)

    def _warm_up(self, strategy: Strategy) -> None:
        """A few steps of a copy that is thrown away; torch's generator is put back."""
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            for _ in range(WARM_UP_STEPS[self.key.strategy.kind]):
                strategy.step(0.0)
        self.warmup_seconds = time.perf_counter() - started

    def _log(self, seconds: float, lr: float, metrics: dict[str, float | None]) -> None:
        self.steps_within_budget = self.steps
        self.journal.write("evaluation", seconds=seconds, step=self.steps, lr=lr, **metrics)
