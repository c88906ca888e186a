"""What the report page says, in words and numbers, as its template reads it. No torch here."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..outline import fitted_text
from ..results import (
    TARGETS,
    UNITS,
    Comparison,
    Measure,
    Reading,
    Results,
    Run,
    Score,
    Strategy,
    Summary,
    amount_text,
    duration_text,
    ending_headline,
    ending_measures,
    endings,
    finite,
    finite_values,
    held_out_headline,
    smallest_p,
    standings,
    step_summaries,
    target_times,
    verdicts_of,
)
from .options_text import options_text
from .style import styles

_MACHINE = {
    "device": "Device",
    "cpu": "Processor",
    "cores": "Cores",
    "platform": "System",
    "threads": "Threads per run",
    "jobs": "Runs at the same time",
    "python": "Python",
    "torch": "PyTorch",
    "numpy": "NumPy",
    "latephase": "latephase",
    "allocator": "Memory allocator",
    "git_commit": "Commit",
}
_OVER_BUDGET = {
    "mean": "Mean over the seeds; the band reaches from the lower to the upper quartile. A cross is the last finite "
    "value of a run that ended early; from there on, the mean is over the other seeds. Values much worse than the "
    "start are cut off.",
    "median": "Median over the seeds with its 95% bootstrap interval; a run that is not finite counts as worst. A "
    "cross is the last finite value of a run that ended early. Values much worse than the start are cut off.",
}
_COSTS = (
    ("steps", "Steps"),
    ("samples", "Samples"),
    ("gradients", "Gradient-equivalents"),
    ("products", "Product rows"),
    ("scored_seconds", "Scored clock"),
    ("cold_seconds", "Cold clock"),
    ("warmup_seconds", "Warm-up"),
    ("evaluation_seconds", "Evaluation"),
    ("overshoot", "Overshoot"),
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number that it is sorted by, None where there is none."""

    text: str
    number: float | None


@dataclass(frozen=True)
class TableRow:
    """A strategy's row in the table of a checkpoint; ``metrics`` pairs each summary with whether it is the best."""

    strategy: Strategy
    metrics: list[tuple[Summary, bool]]


@dataclass(frozen=True)
class Trouble:
    """A run that failed, diverged or is damaged, and what is known of it."""

    run_id: str
    status: str
    error: str


def context_of(results: Results, scores: list[Score], explainable: list[str]) -> dict[str, Any]:
    """Everything that the template reads, but for the figures.

    Args:
        results: The study's results.
        scores: Its scores.
        explainable: Templates that say what a kind of strategies is, by its name.
    """
    reading = Reading(results, scores)
    plan, training = results.plan, results.training_status
    last = results.checkpoint(max(row["epoch"] for row in results.training))
    pairs, kinds = len(plan.seeds), {kind for strategy in plan.strategies for kind in strategy.about}
    return {
        "plan": plan,
        "problem": results.problem,
        "training": {"steps": None} | plan.training.model_dump() | training,
        "training_optimizer": plan.training.optimizer.replace("sgd", "SGD").replace("adam", "Adam"),
        "training_seconds": training["seconds"],
        "training_end": [
            (measure, value) for measure in results.measures if (value := finite(last.get(measure.key))) is not None
        ],
        "budget": amount_text(results.budget, plan.unit),
        "unit": UNITS[plan.unit],
        "over_budget_caption": _OVER_BUDGET[plan.curves],
        "explained": [name for name in explainable if Path(name).name.split(".")[0] in kinds],
        "has_second_order": any(strategy.is_second_order for strategy in plan.strategies),
        "options": {strategy.name: options_text(strategy) for strategy in plan.strategies},
        "looks": styles(plan),
        "baseline": reading.baseline,
        "target": plan.strategy(plan.target),
        "verdicts": verdicts_of(reading),
        "headlines": reading.headlines() + ending_headline(results, scores),
        "held_out": held_out_headline(results),
        "least_p": min(1.0, smallest_p(pairs) * max(1, len(plan.strategies) - 1)),
        "checkpoints": [_checkpoint(reading, scores, epoch) for epoch in plan.checkpoints],
        "profiles": _profiles(results, scores),
        "measures": results.measures,
        "main_measures": results.main_measures,
        "ending_measures": ending_measures(results),
        "costs": [title for _, title in _COSTS],
        "statuses": Counter(run.status for run in results.runs),
        "planned": len(results.runs),
        "fitted": fitted_text(plan),
        "troubles": _troubles(results),
        "unfinished": [run for run in results.runs if run.status in ("missing", "running")],
        "machine": {
            label: value for key, label in _MACHINE.items() if (value := results.environment.get(key)) is not None
        },
        "jobs": results.environment.get("jobs", 1),
    }


def _checkpoint(reading: Reading, scores: list[Score], epoch: int) -> dict[str, Any]:
    """What the section of one checkpoint shows."""
    results = reading.results
    concluded = [(strategy, results.concluded(epoch, strategy)) for strategy in results.plan.strategies]
    return {
        "epoch": epoch,
        "name": f"{epoch:04d}",
        "row": results.checkpoint(epoch),
        "findings": reading.compare(epoch),
        "table": _table(reading, epoch),
        "endings": endings(results, scores, epoch),
        "comparisons": _comparisons(reading, epoch),
        "costs": [(strategy, _cost_cells(runs, results.plan.unit)) for strategy, runs in concluded if runs],
        "steps": step_summaries(results, epoch),
    }


def _table(reading: Reading, epoch: int) -> list[TableRow]:
    """The rows of a checkpoint's table, for the strategies with at least one concluded run."""
    measures = reading.results.measures
    best = {measure: ranking[0][1].mean for measure in measures if (ranking := reading.ranking(measure, epoch))}
    found = [
        (strategy, [(reading.summary(measure, epoch, strategy), best.get(measure)) for measure in measures])
        for strategy in reading.results.plan.strategies
    ]
    return [
        TableRow(strategy, [(summary, summary.mean == top) for summary, top in cells if summary])
        for strategy, cells in found
        if cells[0][0]
    ]


def _comparisons(reading: Reading, epoch: int) -> list[tuple[Measure, Comparison]]:
    """The paired comparisons of a checkpoint in the main measures."""
    return [(m, row) for m in reading.results.main_measures for row in reading.comparisons(m, epoch)]


def _cost_cells(runs: list[Run], unit: str) -> list[Cell]:
    """Means of what the runs took, over those that recorded it (a run that failed may not have come that far)."""
    cells = []
    for key, _ in _COSTS:
        values = finite_values((run.record for run in runs), key)
        mean = fmean(values) if values else None
        in_seconds = key.endswith("seconds") or (key == "overshoot" and unit == "seconds")
        text = "–" if mean is None else duration_text(mean) if in_seconds else _count_text(mean)
        cells.append(Cell(text, mean))
    return cells


def _count_text(mean: float) -> str:
    return f"{mean:,.0f}" if mean >= 10 or mean == int(mean) else f"{mean:.1f}"


def _profiles(results: Results, scores: list[Score]) -> list[dict[str, Any]]:
    """Standings in the performance profile per target; none for a single checkpoint, which says nothing of shares."""
    found = []
    for measure, column in zip(results.main_measures[:2], TARGETS.values(), strict=True):
        times = target_times(results, scores, column)
        if len(times) > 1:
            found.append({"measure": measure, "rows": standings(times, results.plan.baseline), "cases": len(times)})
    return found


def _troubles(results: Results) -> list[Trouble]:
    troubles = []
    for run in results.runs:
        if run.status == "failed":
            troubles.append(Trouble(run.run_id, "failed", str(run.record.get("error", "no error was recorded"))))
        elif run.concluded and run.diverged_at is not None:
            at = amount_text(run.diverged_at, results.plan.unit)
            troubles.append(
                Trouble(run.run_id, "diverged", f"The train loss is not finite from {at} of the budget on.")
            )
        for damage in run.damage:
            path = damage.path.relative_to(results.root)
            troubles.append(Trouble(run.run_id, "damaged", f"{path} cannot be read: {damage.problem}"))
    return troubles
