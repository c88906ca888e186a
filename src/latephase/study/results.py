"""The result files of a study, read back: the plan, the training and every planned run. Imports no torch.

A file of a run that cannot be read does not stop the reading: the run's status is then "damaged", and `Run.damage` says
which file and why.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from ..files import Damaged, refuse_links
from .measures import Measure, main_measures, measures_of
from .plan import Plan, Strategy, read_plan, run_id
from .store import read_chained, read_journal, read_json

CONCLUDED = ("finished", "failed")
"""The statuses of a run that will not go on: only these enter means and figures."""


@dataclass(frozen=True)
class Damage:
    """A file that cannot be read, and why."""

    path: Path
    problem: str


@dataclass(frozen=True)
class Run:
    """One planned run: a strategy that starts from a checkpoint with a seed.

    ``status`` is "finished", "failed", "running", "missing" (not started) or "damaged". ``budget`` is in the study's
    unit. ``record`` is its status file, empty where there is none; ``evaluations`` and ``steps`` are the rows of its
    journal with these events, steps only as far as they ended within the budget; ``clocks`` are its wall-clock rows.
    A damaged run has none of these.
    """

    checkpoint_epoch: int
    strategy: Strategy
    seed: int
    status: str
    budget: float
    record: dict[str, Any]
    evaluations: tuple[dict[str, Any], ...]
    steps: tuple[dict[str, Any], ...]
    clocks: tuple[dict[str, Any], ...]
    damage: tuple[Damage, ...] = ()

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
        """What was spent at the first evaluation with a non-finite train loss, or None."""
        bad = (row["spent"] for row in self.evaluations if finite(row.get("train_loss")) is None)
        return next(bad, None)


@dataclass(frozen=True)
class Results:
    """All that the result files of one study say; ``budget`` is in the plan's unit."""

    root: Path
    plan: Plan
    problem: dict[str, Any]
    environment: dict[str, Any]
    training: tuple[dict[str, Any], ...]
    training_status: dict[str, Any]
    budget: float
    runs: tuple[Run, ...]

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """All measures of the problem; see `latephase.study.measures.measures_of`."""
        return measures_of(self.problem["metrics"])

    @cached_property
    def main_measures(self) -> tuple[Measure, ...]:
        """Those that figures and verdicts are about; see `latephase.study.measures.main_measures`."""
        return main_measures(self.measures)

    def checkpoint(self, epoch: int) -> dict[str, Any]:
        """Return the training's evaluation row at ``epoch``, or the seeds' mean where every seed has its own start."""
        row = next(row for row in reversed(self.training) if row["epoch"] == epoch)
        starts = [] if epoch else list(self._starts.values())
        values = {key: finite_values(starts, key) for key in ("l2_term", *(measure.key for measure in self.measures))}
        return row | {key: fmean(found) for key, found in values.items() if found}

    def start(self, run: Run) -> dict[str, Any]:
        """Return the evaluation row of what a run starts from."""
        own = {} if run.checkpoint_epoch else self._starts.get(run.seed, {})
        return self.checkpoint(run.checkpoint_epoch) | {key: value for key, value in own.items() if value is not None}

    @cached_property
    def _starts(self) -> dict[int, dict[str, Any]]:
        """By seed, the first evaluation from epoch 0, where every seed has weights of its own."""
        runs = self.runs if self.plan.fresh_weights else ()
        return {run.seed: run.evaluations[0] for run in runs if run.checkpoint_epoch == 0 and run.evaluations}

    def concluded(self, checkpoint_epoch: int, strategy: Strategy) -> list[Run]:
        """Return the concluded runs of a strategy from a checkpoint, in order of the seeds."""
        wanted = (checkpoint_epoch, strategy.name)
        return [run for run in self.runs if (run.checkpoint_epoch, run.strategy.name) == wanted and run.concluded]


def finite(value: object) -> float | None:
    """Return ``value`` as a float where it is a finite number, else None (null in a journal is a non-finite metric)."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def finite_values(rows: Iterable[dict[str, Any]], key: str) -> list[float]:
    """Return the finite values of a field over journal rows, in their order."""
    return [value for row in rows if (value := finite(row.get(key))) is not None]


def load_results(directory: str | os.PathLike[str]) -> Results:
    """Read the result files of a study; runs that have not started are part of the result.

    Args:
        directory: The study's folder. It holds ``study.toml``, ``problem.json`` and a finished training; runs may be
            missing, under way, failed or damaged.

    Returns:
        Plan, problem, machine, training and one entry per planned run, in the order checkpoint, strategy, seed.

    Raises:
        FileNotFoundError: There is no ``study.toml``.
        Damaged: A file of the study or of its training cannot be read; or the training is not finished, or has no
            finite evaluation at a checkpoint of the plan: there is no budget or no state to start from, so nothing can
            be compared yet.
    """
    root = Path(directory)
    refuse_links(root)
    plan = read_plan(root / "study.toml")
    problem = _read_needed(root / "problem.json", ("metrics",))
    if not _is_a_problem(problem):
        what_to_do = "delete it and run the same study command again"
        raise Damaged(f"{root / 'problem.json'} is damaged: it does not describe a problem; {what_to_do}")
    status = _read_needed(root / "training" / "status.json", ("status",), absent_is_empty=True)
    if status.get("status") != "finished" or finite(status.get("seconds")) is None:
        raise Damaged(f"{root}: the training is not finished, so there is no budget and no run to compare")
    training = _read_training(root / "training" / "rows.jsonl", plan, problem)
    budget = plan.budget_amount
    if budget is None:
        budget = (plan.budget_share or 0.0) * (finite(status.get(plan.unit)) or 0.0)
    planned = [(c, strategy, seed) for c in plan.checkpoints for strategy in plan.strategies for seed in plan.seeds]
    runs = tuple(_read_run(root, *key, budget) for key in planned)
    started = [run.budget for run in runs if run.status in (*CONCLUDED, "running")]
    environment = _read_needed(root / "environment.json", (), absent_is_empty=True)
    return Results(root, plan, problem, environment, training, status, started[0] if started else budget, runs)


def _read_needed(path: Path, keys: Sequence[str], *, absent_is_empty: bool = False) -> dict[str, Any]:
    """A JSON object without which nothing can be read; errors name the file and what to do."""
    try:
        table = read_json(path)
    except ValueError as error:
        what_to_do = "delete it and run the same study command again"
        raise Damaged(f"{path} is damaged: {_why(path, error)}; {what_to_do}") from error
    if table is None and absent_is_empty:
        return {}
    if table is None or any(key not in table for key in keys):
        wrong = "is missing" if table is None else f"does not hold {', '.join(keys)}"
        raise Damaged(f"{path} {wrong}; run the same study command again")
    return table


def _is_a_problem(table: dict[str, Any]) -> bool:
    """Whether the description of a problem has what readers count on, in the kinds that it is written in."""
    metrics, rows = table["metrics"], table.get("rows", {"train": 0})
    named = isinstance(metrics, list) and all(isinstance(m, dict) and isinstance(m.get("name"), str) for m in metrics)
    counted = isinstance(rows, dict) and isinstance(rows.get("train"), int)
    return (
        named
        and all("higher_is_better" in m for m in metrics)
        and counted
        and isinstance(table.get("parameters", 0), int)
    )


def _read_training(path: Path, plan: Plan, problem: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The training's evaluation rows, with finite measures at every checkpoint of the plan."""
    try:
        rows = tuple(row for row in read_journal(path) if row.get("event") == "evaluation")
    except ValueError as error:
        what_to_do = "start the study anew in another folder"
        raise Damaged(f"{path} is damaged: {_why(path, error)}; {what_to_do}") from error
    if any(finite(row.get("epoch")) is None for row in rows):
        raise Damaged(f"{path} is damaged: an evaluation without its epoch; start the study anew in another folder")
    for epoch in plan.checkpoints:
        at = [row for row in rows if row.get("epoch") == epoch]
        if not at or any(finite(at[-1].get(measure.key)) is None for measure in measures_of(problem["metrics"])):
            raise Damaged(f"{path}: the training has no finite evaluation at the checkpoint of epoch {epoch}")
    return rows


def _read_run(root: Path, epoch: int, strategy: Strategy, seed: int, budget: float) -> Run:
    folder = root / "runs" / run_id(epoch, strategy.name, seed)
    damage: list[Damage] = []
    record = _read_object(folder / "status.json", damage)
    own = finite(_read_object(folder / "run.json", damage).get("budget"))
    budget = budget if own is None else own
    rows, of_rows = _read_rows(folder / "rows.jsonl", damage)
    clocks, of_clocks = _read_rows(folder / "clocks.jsonl", damage)
    status = record.get("status", "running" if rows else "missing")
    said = record.get("chains")
    chains: dict[str, Any] = said if isinstance(said, dict) else {}
    for name, found in (("rows", of_rows), ("clocks", of_clocks)):
        if status in CONCLUDED and not damage and found != chains.get(name) and (found is not None or name in chains):
            problem = "rows at its end are missing: it is not what the run had written when it ended"
            damage.append(Damage(folder / f"{name}.jsonl", problem))
    if not isinstance(status, str) or status not in (*CONCLUDED, "running", "missing"):
        damage.append(Damage(folder / "status.json", f"unknown status {status!r}"))
    evaluations = tuple(row for row in rows if row.get("event") == "evaluation")
    if status == "finished" and not evaluations and not damage:
        damage.append(Damage(folder / "rows.jsonl", "the run is finished, but has no evaluation"))
    steps = (row for row in rows if row.get("event") == "step" and row["spent"] <= budget * (1 + 1e-9))
    if damage:
        return Run(epoch, strategy, seed, "damaged", budget, {}, (), (), (), tuple(damage))
    return Run(epoch, strategy, seed, status, budget, record, evaluations, tuple(steps), tuple(clocks))


def _why(path: Path, error: Exception) -> str:
    """What is wrong with a file, without its name, which stands beside it."""
    return str(error).removeprefix(f"{path} is damaged: ").removeprefix(f"{path}, ")


def _read_object(path: Path, damage: list[Damage]) -> dict[str, Any]:
    """A JSON object, empty where there is no file or it is damaged."""
    try:
        return read_json(path) or {}
    except (ValueError, OSError) as error:
        damage.append(Damage(path, _why(path, error)))
        return {}


def _read_rows(path: Path, damage: list[Damage]) -> tuple[list[dict[str, Any]], int | None]:
    """The rows of a journal and their checksum.

    None where it is damaged: a line that is no object, no number spent, rows out of order.
    """
    try:
        rows, chain = read_chained(path)
    except (ValueError, OSError) as error:
        damage.append(Damage(path, _why(path, error)))
        return [], None
    last: dict[str, float] = {}
    for row in rows:
        event, spent = str(row.get("event")), finite(row.get("spent"))
        if event not in ("evaluation", "step", "clock"):
            continue
        if spent is None or spent < last.get(event, -math.inf) or (event != "step" and spent == last.get(event)):
            damage.append(Damage(path, f"rows out of order or without what was spent, at {event} {row.get('spent')}"))
            return [], None
        last[event] = spent
    return rows, chain
