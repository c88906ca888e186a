"""Scores of a study: the best that each run reached within its budget, and how the runs of a checkpoint compare.

Best is over the evaluation rows of a run, the checkpoint itself (nothing spent) included: no strategy can score worse
than having done nothing, and every score but a time to target is finite. The relative performance of the runs from a
checkpoint is the linear map of the paper ("Late-Phase Second-Order Training", section B.2.1): worst 0, best 1. Imports
no torch.
"""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import fmean
from typing import Any

import numpy as np

from ...records import as_cell, write_text_atomic
from .load import CONCLUDED, Results, Run, finite, finite_values, load_results
from .measures import TEST_ACCURACY, TRAIN_LOSS, Measure
from .reached import final_value, run_values, targets, time_to_target

Key = tuple[int, str]
"""A checkpoint's epoch and a strategy's name."""


@dataclass(frozen=True)
class Score:
    """What one planned run reached: a row of ``scores.csv``, whose columns are these fields in this order.

    Losses are means over a whole split with the L2 term, accuracies are fractions in [0, 1] and None where the problem
    has none. ``final_*`` is the last finite value of the run, so of a run that diverged it is the value before it did.
    ``final_l2_term`` is the part of ``final_train_loss`` that is the L2 term; 0 where the rows do not say. Of a run
    that has not started or is damaged, all metrics are those of the checkpoint, and seconds and counts are 0.

    ``budget`` and ``overshoot`` are in ``unit``. ``budget_seconds`` and ``overshoot_seconds`` are the same where that
    is seconds; otherwise the scored seconds, which such a budget does not limit, and 0. Steps, samples, gradients and
    products are counts within the budget. ``scored_seconds`` is the warm clock, ``cold_seconds`` has the first call and
    compilation too.

    ``time_to_target_*`` is what was spent, in ``unit``, when the run first was as good as the target: infinity where it
    never was, None where the run has not come to its end or there is no target. ``test`` is the test accuracy, or the
    test loss where there is none.

    ``metrics`` has the last columns: ``best_test_X`` and ``relative_test_X`` of every metric X but the accuracy.
    """

    problem: str
    checkpoint_epoch: int
    strategy: str
    seed: int
    status: str
    best_train_loss: float
    best_test_accuracy: float | None
    relative_train_loss: float
    relative_test_accuracy: float | None
    budget_seconds: float
    overshoot_seconds: float
    steps: int
    best_test_loss: float
    final_train_loss: float
    final_test_loss: float
    final_test_accuracy: float | None
    final_l2_term: float
    warmup_seconds: float
    scored_seconds: float
    cold_seconds: float
    unit: str
    budget: float
    overshoot: float
    samples: int
    gradients: float
    products: int
    time_to_target_train_loss: float | None
    time_to_target_test: float | None
    metrics: dict[str, float] = field(default_factory=dict, hash=False)

    @property
    def final_train_loss_without_l2(self) -> float:
        """The data's part of the final train loss."""
        return self.final_train_loss - self.final_l2_term

    @property
    def concluded(self) -> bool:
        """Whether the run has come to its end, in success or failure."""
        return self.status in CONCLUDED

    def number(self, column: str) -> float | None:
        """Return a number by the name of its column, or of a property; None where it is not known."""
        value = self.metrics[column] if column in self.metrics else getattr(self, column)
        return None if value is None else float(value)

    def row(self) -> dict[str, Any]:
        """Return the columns of ``scores.csv``."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "metrics"}
        return own | self.metrics


@dataclass(frozen=True)
class Summary:
    """The distribution of one number over the seeds; ``n`` is their count."""

    mean: float
    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    maximum: float
    n: int


def score(directory: str | os.PathLike[str]) -> list[Score]:
    """Score every planned run of a study.

    Args:
        directory: The study's folder; its training is finished, its runs may be missing, under way, failed or damaged.

    Returns:
        One score per checkpoint x strategy x seed of the plan, in that order.

    Raises:
        FileNotFoundError: There is no ``study.toml``.
        ValueError: see `latephase.study.results.load.load_results`.
    """
    return score_results(load_results(directory))


def score_results(results: Results) -> list[Score]:
    """Score every planned run of results already read; see `score`."""
    goals = targets(results)
    scores = [_score_run(run, results, goals) for run in results.runs]
    for measure in results.measures:
        mapped = relative_values(scores, measure)
        scores = [_with_relative(row, measure, value) for row, value in zip(scores, mapped, strict=True)]
    return scores


def relative(values: Sequence[float], *, smaller_is_better: bool) -> list[float]:
    """Map values linearly so that the worst is 0 and the best is 1; all equal: all 1.

    Args:
        values: Finite numbers, at least one.
        smaller_is_better: True for a loss, False for an accuracy.

    Returns:
        The mapped values, in the order given.
    """
    best, worst = (min(values), max(values)) if smaller_is_better else (max(values), min(values))
    if best == worst:
        return [1.0] * len(values)
    return [abs(value - worst) / abs(best - worst) for value in values]


def relative_values(scores: Sequence[Score], measure: Measure) -> list[float]:
    """Return the relative performance of each score among the concluded runs from its checkpoint.

    A run that has not concluded has no part in what is best and worst, and is at 0 where it is worse than all that
    have. Where none has, all are at 1.
    """
    found = [1.0] * len(scores)
    for epoch in dict.fromkeys(row.checkpoint_epoch for row in scores):
        here = {index: row for index, row in enumerate(scores) if row.checkpoint_epoch == epoch}
        values = {index: row.number(measure.best) or 0.0 for index, row in here.items()}
        if done := [values[index] for index, row in here.items() if row.concluded]:
            within = [min(max(value, min(done)), max(done)) for value in values.values()]
            mapped = relative(within, smaller_is_better=not measure.higher_is_better)
            for index, value in zip(here, mapped, strict=True):
                found[index] = value
    return found


def summarize(scores: Sequence[Score], column: str) -> dict[Key, Summary]:
    """Summarise a number over the seeds, per checkpoint and strategy.

    Only concluded runs count: a run that has not started says nothing of its strategy. A failed run counts with the
    best that it reached before it failed.

    Args:
        scores: The scores of a study.
        column: A numeric column of `Score`, such as "best_train_loss" or "best_test_rmse".

    Returns:
        Summaries keyed by (checkpoint epoch, strategy name), in the order of the scores; without the pairs that have no
        concluded run or no such number. Quartiles are linearly interpolated, numpy's default.
    """
    groups: dict[Key, list[float]] = {}
    for row in scores:
        if row.concluded and (value := row.number(column)) is not None:
            groups.setdefault((row.checkpoint_epoch, row.strategy), []).append(value)
    return {key: summary_of(values) for key, values in groups.items()}


def summary_of(values: Sequence[float]) -> Summary:
    """Summarise finite values, at least one."""
    lower, middle, upper = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Summary(fmean(values), middle, lower, upper, min(values), max(values), len(values))


def write_scores(scores: Sequence[Score], path: str | os.PathLike[str]) -> None:
    """Write scores as CSV, one row per run; numbers read back exactly, what is not known is empty.

    Args:
        scores: The scores of a study, at least one.
        path: The file, usually ``scores.csv`` in the study's folder; replaced as a whole.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(scores[0].row()), lineterminator="\n")
    writer.writeheader()
    for row in scores:
        writer.writerow({key: as_cell(value) for key, value in row.row().items()})
    write_text_atomic(path, text.getvalue())


def _with_relative(row: Score, measure: Measure, value: float) -> Score:
    column = _relative(measure.best)
    if measure in (TRAIN_LOSS, TEST_ACCURACY):
        return replace(row, **{column: value})
    return replace(row, metrics=row.metrics | {column: value}) if measure.best in row.metrics else row


def _relative(column: str) -> str:
    return f"relative_{column.removeprefix('best_')}"


def _score_run(run: Run, results: Results, goals: dict[tuple[int, Measure], float]) -> Score:
    """Score one run; the relative performances, which need the other runs, are left at 1."""
    start = results.start(run)
    best = {measure.key: measure.choose(run_values(run, measure, start)) for measure in results.measures}
    final = {measure.key: final_value(run, measure, start) for measure in results.measures}
    reached = [time_to_target(run, m, goals.get((run.checkpoint_epoch, m))) for m in results.main_measures[:2]]
    accurate = TEST_ACCURACY in results.measures
    in_seconds = results.plan.unit == "seconds"
    record = {key: finite(value) or 0.0 for key, value in run.record.items()}
    scored, overshoot = record.get("scored_seconds", 0.0), record.get("overshoot", 0.0)
    own = [(m.best, best[m.key]) for m in results.measures[2:] if m != TEST_ACCURACY]
    return Score(
        problem=results.plan.problem,
        checkpoint_epoch=run.checkpoint_epoch,
        strategy=run.strategy.name,
        seed=run.seed,
        status=run.status,
        best_train_loss=best["train_loss"],
        best_test_accuracy=best.get("test_accuracy"),
        relative_train_loss=1.0,
        relative_test_accuracy=1.0 if accurate else None,
        budget_seconds=run.budget if in_seconds else scored,
        overshoot_seconds=overshoot if in_seconds else 0.0,
        steps=_count(run, "steps", "step"),
        best_test_loss=best["test_loss"],
        final_train_loss=final["train_loss"],
        final_test_loss=final["test_loss"],
        final_test_accuracy=final.get("test_accuracy"),
        final_l2_term=(finite_values(run.evaluations, "l2_term") or [finite(start.get("l2_term")) or 0.0])[-1],
        warmup_seconds=record.get("warmup_seconds", 0.0),
        scored_seconds=scored,
        cold_seconds=record.get("cold_seconds", 0.0),
        unit=results.plan.unit,
        budget=run.budget,
        overshoot=overshoot,
        samples=int(record.get("samples", 0)),
        gradients=record.get("gradients", 0.0),
        products=int(record.get("products", 0)),
        time_to_target_train_loss=reached[0],
        time_to_target_test=reached[1],
        metrics={key: number for column, value in own for key, number in ((column, value), (_relative(column), 1.0))},
    )


def _count(run: Run, key: str, column: str) -> int:
    """A count of the run's record; of a run that recorded none, that of its last evaluation."""
    last = run.evaluations[-1].get(column, 0) if run.evaluations else 0
    return int(finite(run.record.get(key)) or last)
