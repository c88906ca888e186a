"""The result files of a study, read back: the plan, the training and every planned run. Imports no torch.

A file of a run that cannot be read does not stop the reading: the run's status is then "damaged", and `Run.damage` says
which file and why.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from ...records import DamagedFile, ResultsError
from .measures import Measure, main_measures, measures_of
from .plan import Plan, Strategy, read_plan, run_id
from .run_files import (
    CONCLUDED,
    Damage,
    checked,
    finite,
    is_count,
    lost_rows,
    read_run_files,
    read_sealed,
    read_training_rows,
    read_training_status,
    wrong_folder,
)


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
        """All measures of the problem; see `latephase.study.results.measures.measures_of`."""
        return measures_of(self.problem["metrics"])

    @cached_property
    def main_measures(self) -> tuple[Measure, ...]:
        """Those that figures and verdicts are about; see `latephase.study.results.measures.main_measures`."""
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
        ResultsError: A file of the study or of its training cannot be read; or the training is not finished, or has no
            finite evaluation at a checkpoint of the plan: there is no budget or no state to start from, so nothing can
            be compared yet.
    """
    root = Path(directory)
    plan = read_plan(root / "study.toml")
    try:
        return _load(root, plan)
    except DamagedFile as error:
        raise ResultsError(f"{error.path} is damaged: {error.problem}; {MEND}") from error


def _load(root: Path, plan: Plan) -> Results:
    for folder in (root / "training", root / "runs"):
        if wrong := wrong_folder(folder):
            raise DamagedFile(folder, wrong)
    problem = _read_problem(root / "problem.json", plan.sealed)
    status = read_training_status(root / "training" / "status.json", plan.sealed)
    if status.get("status") != "finished" or finite(status.get("seconds")) is None:
        raise ResultsError(f"{root}: the training is not finished, so there is no budget and no run to compare")
    training = _read_training(root / "training", plan, problem, status)
    budget = plan.budget.of(finite(status.get(plan.unit)) or 0.0)
    planned = [(c, strategy, seed) for c in plan.checkpoints for strategy in plan.strategies for seed in plan.seeds]
    runs = tuple(_read_run(root, *key, plan, budget) for key in planned)
    started = [run.budget for run in runs if run.status in (*CONCLUDED, "running")]
    environment = _read_environment(root / "environment.json", plan.sealed)
    return Results(root, plan, problem, environment, training, status, started[0] if started else budget, runs)


MEND = "run the same study command again, which sets it aside and makes it anew"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_metrics(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(metric, dict) and _is_text(metric.get("name")) and isinstance(metric.get("higher_is_better"), bool)
        for metric in value
    )


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_count, value.values()))


PROBLEM = {
    "metrics": _are_metrics,
    "name": _is_text,
    "version": is_count,
    "title": _is_text,
    "description": _is_text,
    "parameters": is_count,
    "rows": _are_counts,
}
"""What the record of a problem holds."""


def _read_problem(path: Path, sealed: bool) -> dict[str, Any]:
    table = read_sealed(path, sealed)
    if table is None:
        raise ResultsError(f"{path} is missing; {MEND}")
    return checked(table, PROBLEM, path)


def _read_environment(path: Path, sealed: bool) -> dict[str, Any]:
    table = read_sealed(path, sealed) or {}
    for key, value in table.items():
        counts = key in ("cores", "threads", "jobs")
        if not (is_count(value) if counts else value is None or isinstance(value, str | int | float)):
            raise DamagedFile(path, f"{key} is {value!r:.60}")
    return table


def _read_training(
    folder: Path, plan: Plan, problem: dict[str, Any], status: dict[str, Any]
) -> tuple[dict[str, Any], ...]:
    """The training's evaluation rows, with finite measures at every checkpoint of the plan."""
    path = folder / "rows.jsonl"
    rows, journal = read_training_rows(path, plan.sealed)
    if plan.sealed and (lost := lost_rows(folder, {path.name: journal}, status)):
        raise DamagedFile(lost[0].path, lost[0].problem)
    for epoch in plan.checkpoints:
        at = [row for row in rows if row["epoch"] == epoch]
        if not at or any(finite(at[-1].get(measure.key)) is None for measure in measures_of(problem["metrics"])):
            raise ResultsError(f"{path}: the training has no finite evaluation at the checkpoint of epoch {epoch}")
    return tuple(rows)


def _read_run(root: Path, epoch: int, strategy: Strategy, seed: int, plan: Plan, budget: float) -> Run:
    folder = root / "runs" / run_id(epoch, strategy.name, seed)
    try:
        files = read_run_files(folder, plan.evaluations, plan.sealed)
    except OSError as error:
        damage = (Damage(Path(error.filename or folder), error.strerror or str(error)),)
        return Run(epoch, strategy, seed, "damaged", budget, {}, (), (), (), damage)
    if files.damage:
        return Run(epoch, strategy, seed, "damaged", budget, {}, (), (), (), tuple(files.damage))
    own = finite(files.run.get("budget"))
    budget = budget if own is None else own
    evaluations = tuple(row for row in files.rows if row.get("event") == "evaluation")
    steps = (row for row in files.rows if row.get("event") == "step" and row["spent"] <= budget * (1 + 1e-9))
    clocks = (row for row in files.clocks if row.get("event") == "clock")
    return Run(epoch, strategy, seed, files.status, budget, files.record, evaluations, tuple(steps), tuple(clocks))
