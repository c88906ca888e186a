"""Scores of a study: the best that each run reached within its budget, and how the runs of a checkpoint compare.

Best is over the evaluation rows of a run, the checkpoint itself (t = 0) included: no strategy can score worse than
having done nothing, and every score is finite. The relative performance of a checkpoint's runs is the linear map of the
paper ("Late-Phase Second-Order Training", section B.2.1): worst 0, best 1. Imports no torch.
"""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import fmean
from typing import Any

import numpy as np

from .results import CONCLUDED, Results, Run, finite, finite_values, load_results
from .store import write_text_atomic


@dataclass(frozen=True)
class Score:
    """What one planned run reached: a row of ``scores.csv``, whose columns are these fields in this order.

    Losses are means over a whole split with the L2 term, accuracies are fractions in [0, 1]. ``final_*`` is the last
    finite value of the run, so of a run that diverged it is the value before it did. ``final_l2_term`` is the part of
    ``final_train_loss`` that is the L2 term; 0 where the rows do not say. Of a run that has not started, all metrics
    are those of the checkpoint, and seconds and steps are 0. Steps are those that ended within the budget.
    """

    problem: str
    checkpoint_epoch: int
    strategy: str
    seed: int
    status: str
    best_train_loss: float
    best_test_accuracy: float
    relative_train_loss: float
    relative_test_accuracy: float
    budget_seconds: float
    overshoot_seconds: float
    steps: int
    best_test_loss: float
    final_train_loss: float
    final_test_loss: float
    final_test_accuracy: float
    warmup_seconds: float
    seconds: float
    final_l2_term: float

    @property
    def final_train_loss_without_l2(self) -> float:
        """The data's part of the final train loss."""
        return self.final_train_loss - self.final_l2_term

    @property
    def concluded(self) -> bool:
        """Whether the run has come to its end, in success or failure."""
        return self.status in CONCLUDED


@dataclass(frozen=True)
class Summary:
    """The distribution of one number over the seeds: mean, quartiles, extremes and the count ``n``."""

    mean: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    maximum: float
    n: int

    @property
    def range(self) -> float:
        """The distance from the smallest to the largest value."""
        return self.maximum - self.minimum


def score(directory: str | os.PathLike[str]) -> list[Score]:
    """Score every planned run of a study.

    Args:
        directory: The study's folder; its training is finished, its runs may be missing, under way or failed.

    Returns:
        One score per checkpoint x strategy x seed of the plan, in that order. Every number is finite.

    Raises:
        FileNotFoundError: There is no ``study.toml``.
        ValueError: The training is not finished or has no finite evaluation at a checkpoint.
    """
    return score_results(load_results(directory))


def score_results(results: Results) -> list[Score]:
    """Score every planned run of results already read; see `score`."""
    scores = [_score_run(run, results.plan.problem, results.checkpoint(run.checkpoint_epoch)) for run in results.runs]
    complete: list[Score] = []
    for epoch in results.plan.checkpoints:
        rows = [row for row in scores if row.checkpoint_epoch == epoch]
        losses = relative([row.best_train_loss for row in rows], smaller_is_better=True)
        accuracies = relative([row.best_test_accuracy for row in rows], smaller_is_better=False)
        complete += [
            replace(row, relative_train_loss=loss, relative_test_accuracy=accuracy)
            for row, loss, accuracy in zip(rows, losses, accuracies, strict=True)
        ]
    return complete


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


def summarize(scores: Sequence[Score], metric: str) -> dict[tuple[int, str], Summary]:
    """Summarise a metric over the seeds, per checkpoint and strategy.

    Only concluded runs count: a run that has not started says nothing of its strategy. A failed run counts with the
    best that it reached before it failed.

    Args:
        scores: The scores of a study.
        metric: A numeric field of `Score`, such as "best_train_loss".

    Returns:
        Summaries keyed by (checkpoint epoch, strategy name), in the order of the scores; without the pairs that have no
        concluded run. Quartiles are linearly interpolated, numpy's default.
    """
    groups: dict[tuple[int, str], list[float]] = {}
    for row in scores:
        if row.concluded:
            groups.setdefault((row.checkpoint_epoch, row.strategy), []).append(float(getattr(row, metric)))
    return {key: _summary(values) for key, values in groups.items()}


def write_scores(scores: Sequence[Score], path: str | os.PathLike[str]) -> None:
    """Write scores as CSV, one row per run; numbers are written so that they read back exactly.

    Args:
        scores: The scores of a study.
        path: The file, usually ``scores.csv`` in the study's folder; replaced as a whole.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in scores)
    write_text_atomic(path, text.getvalue())


def _summary(values: list[float]) -> Summary:
    lower, upper = np.quantile(values, [0.25, 0.75]).tolist()
    return Summary(fmean(values), lower, upper, min(values), max(values), len(values))


def _score_run(run: Run, problem: str, checkpoint: dict[str, Any]) -> Score:
    """Score one run; the relative performances, which need the other runs, are left at 1."""
    losses = finite_values(run.evaluations, "train_loss") or [checkpoint["train_loss"]]
    test_losses = finite_values(run.evaluations, "test_loss") or [checkpoint["test_loss"]]
    accuracies = finite_values(run.evaluations, "test_accuracy") or [checkpoint["test_accuracy"]]
    last_step = run.evaluations[-1].get("step", 0) if run.evaluations else 0
    return Score(
        problem=problem,
        checkpoint_epoch=run.checkpoint_epoch,
        strategy=run.strategy.name,
        seed=run.seed,
        status=run.status,
        best_train_loss=min(losses),
        best_test_accuracy=max(accuracies),
        relative_train_loss=1.0,
        relative_test_accuracy=1.0,
        budget_seconds=run.budget_seconds,
        overshoot_seconds=finite(run.record.get("overshoot_seconds")) or 0.0,
        steps=int(finite(run.record.get("steps")) or last_step),
        best_test_loss=min(test_losses),
        final_train_loss=losses[-1],
        final_test_loss=test_losses[-1],
        final_test_accuracy=accuracies[-1],
        warmup_seconds=finite(run.record.get("warmup_seconds")) or 0.0,
        seconds=finite(run.record.get("seconds")) or 0.0,
        final_l2_term=(finite_values(run.evaluations, "l2_term") or [finite(checkpoint.get("l2_term")) or 0.0])[-1],
    )
