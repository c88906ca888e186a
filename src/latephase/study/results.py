"""The result files of a study, read back: the plan, the training and every planned run. Imports no torch."""

import math
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .store import read_journal, read_json

HESSIAN_FREE = "hessian_free"
"""The kind of a strategy that takes Hessian-free steps; every other kind has a learning rate per evaluation row."""

CONCLUDED = ("finished", "failed")
"""The statuses of a run that will not go on: only these enter means and figures."""

SCORED_METRICS = ("train_loss", "test_loss", "test_accuracy")
"""The metrics of an evaluation row that scores and figures of the runs read."""


@dataclass(frozen=True)
class Strategy:
    """One way to go on from a checkpoint: its name, kind, label for readers, and options."""

    name: str
    kind: str
    label: str
    options: dict[str, Any]

    @property
    def is_hessian_free(self) -> bool:
        """Whether the strategy takes Hessian-free steps."""
        return self.kind == HESSIAN_FREE


@dataclass(frozen=True)
class Plan:
    """What a study set out to do, from its resolved ``study.toml``; ``text`` is that file as written."""

    name: str
    description: str
    problem: str
    checkpoints: tuple[int, ...]
    strategies: tuple[Strategy, ...]
    seeds: tuple[int, ...]
    budget_share: float
    training: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Run:
    """One planned run: a strategy that starts from a checkpoint with a seed.

    ``status`` is "finished", "failed", "running" or "missing" (not started). ``record`` is its status file, empty where
    there is none; ``evaluations`` and ``steps`` are the rows of its journal with these events.
    """

    checkpoint_epoch: int
    strategy: Strategy
    seed: int
    status: str
    budget_seconds: float
    record: dict[str, Any]
    evaluations: tuple[dict[str, Any], ...]
    steps: tuple[dict[str, Any], ...]

    @property
    def run_id(self) -> str:
        """The name of the run's folder."""
        return run_id(self.checkpoint_epoch, self.strategy.name, self.seed)

    @property
    def concluded(self) -> bool:
        """Whether the run has come to its end, in success or failure."""
        return self.status in CONCLUDED

    @property
    def diverged_at(self) -> float | None:
        """The second of the first evaluation row with a non-finite train loss, or None."""
        bad = (row["seconds"] for row in self.evaluations if finite(row.get("train_loss")) is None)
        return next(bad, None)


@dataclass(frozen=True)
class Results:
    """All that the result files of one study say."""

    plan: Plan
    environment: dict[str, Any]
    training: tuple[dict[str, Any], ...]
    training_status: dict[str, Any]
    budget_seconds: float
    runs: tuple[Run, ...]

    def checkpoint(self, epoch: int) -> dict[str, Any]:
        """Return the training's evaluation row at ``epoch``."""
        return next(row for row in reversed(self.training) if row["epoch"] == epoch)

    def concluded(self, checkpoint_epoch: int, strategy: Strategy) -> list[Run]:
        """Return the concluded runs of a strategy from a checkpoint, in order of the seeds."""
        wanted = (checkpoint_epoch, strategy.name)
        return [run for run in self.runs if (run.checkpoint_epoch, run.strategy.name) == wanted and run.concluded]


def run_id(checkpoint_epoch: int, strategy: str, seed: int) -> str:
    """Return the name of a run's folder, such as ``checkpoint-0010_hf-512_seed-0``."""
    return f"checkpoint-{checkpoint_epoch:04d}_{strategy}_seed-{seed}"


def finite(value: object) -> float | None:
    """Return ``value`` as a float where it is a finite number, else None (null in a journal is a non-finite metric)."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def finite_values(rows: Iterable[dict[str, Any]], key: str) -> list[float]:
    """Return the finite values of a field over journal rows, in their order."""
    return [value for row in rows if (value := finite(row.get(key))) is not None]


def load_results(directory: str | os.PathLike[str]) -> Results:
    """Read the result files of a study; runs that have not started are part of the result.

    Args:
        directory: The study's folder. It holds ``study.toml`` and a finished training; runs may be missing, under way
            or failed.

    Returns:
        Plan, machine, training and one entry per planned run, in the order checkpoint, strategy, seed of the plan.

    Raises:
        FileNotFoundError: There is no ``study.toml``.
        ValueError: The training is not finished, or has no finite evaluation at a checkpoint of the plan: there is no
            budget or no state to start from, so nothing can be compared yet.
    """
    root = Path(directory)
    plan = _read_plan(root / "study.toml")
    training = tuple(row for row in read_journal(root / "training" / "rows.jsonl") if row.get("event") == "evaluation")
    training_status = read_json(root / "training" / "status.json") or {}
    seconds = finite(training_status.get("seconds"))
    if training_status.get("status") != "finished" or seconds is None:
        raise ValueError(
            f"{root}: the first-order training is not finished, so there is no budget and no run to compare"
        )
    for epoch in plan.checkpoints:
        rows = [row for row in training if row.get("epoch") == epoch]
        if not rows or any(finite(rows[-1].get(metric)) is None for metric in SCORED_METRICS):
            raise ValueError(f"{root}: the training has no finite evaluation at the checkpoint of epoch {epoch}")
    planned = [(c, strategy, seed) for c in plan.checkpoints for strategy in plan.strategies for seed in plan.seeds]
    records = [read_json(root / "runs" / run_id(c, strategy.name, seed) / "run.json") for c, strategy, seed in planned]
    measured = finite_values((record for record in records if record), "budget_seconds")
    budget = measured[0] if measured else plan.budget_share * seconds
    runs = tuple(_read_run(root, *key, record or {}, budget) for key, record in zip(planned, records, strict=True))
    return Results(plan, read_json(root / "environment.json") or {}, training, training_status, budget, runs)


def _read_plan(path: Path) -> Plan:
    text = path.read_text(encoding="utf-8")
    table = tomllib.loads(text)
    return Plan(
        name=table["name"],
        description=table.get("description", ""),
        problem=table["problem"],
        checkpoints=tuple(table["checkpoints"]),
        strategies=tuple(_read_strategy(entry) for entry in table["strategies"]),
        seeds=tuple(table["seeds"]),
        budget_share=table["budget_share"],
        training=table["training"],
        text=text,
    )


def _read_strategy(entry: dict[str, Any]) -> Strategy:
    """Options are a table of their own, further keys of the strategy, or both."""
    options = {key: value for key, value in entry.items() if key not in ("name", "kind", "label", "options")}
    options |= entry.get("options", {})
    return Strategy(entry["name"], entry["kind"], entry.get("label", entry["name"]), options)


def _read_run(root: Path, epoch: int, strategy: Strategy, seed: int, run: dict[str, Any], budget: float) -> Run:
    folder = root / "runs" / run_id(epoch, strategy.name, seed)
    rows = read_journal(folder / "rows.jsonl")
    record = read_json(folder / "status.json") or {}
    budget_seconds = finite(run.get("budget_seconds"))
    within = budget if budget_seconds is None else budget_seconds  # the step that overran it does not count
    return Run(
        checkpoint_epoch=epoch,
        strategy=strategy,
        seed=seed,
        status=record.get("status", "running" if rows else "missing"),
        budget_seconds=within,
        record=record,
        evaluations=tuple(row for row in rows if row.get("event") == "evaluation"),
        steps=tuple(row for row in rows if row.get("event") == "step" and row["seconds"] <= within),
    )
