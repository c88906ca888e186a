"""What a run reached: its values, the targets of a study and the time to them. Imports no torch."""

import math
from statistics import median
from typing import Any

from .load import Results, Run, finite, finite_values
from .measures import Measure


def run_values(run: Run, measure: Measure, start: dict[str, Any]) -> list[float]:
    """Return the finite values of a run's evaluations; the checkpoint's own where there is none."""
    return finite_values(run.evaluations, measure.key) or [start[measure.key]]


def final_value(run: Run, measure: Measure, start: dict[str, Any]) -> float:
    """Return the last finite value of a run, the checkpoint's own where there is none."""
    return run_values(run, measure, start)[-1]


def targets(results: Results) -> dict[tuple[int, Measure], float]:
    """Return the targets: at each checkpoint the median, over the seeds, of the best that the target strategy reached.

    A median of several seeds, not the best run, as a lucky run is no fair target (AlgoPerf).

    Returns:
        Keyed by checkpoint epoch and main measure; without the checkpoints where no run of the strategy has concluded.
    """
    strategy = results.plan.strategy(results.plan.target)
    found = {}
    for epoch in results.plan.checkpoints:
        if runs := results.concluded(epoch, strategy):
            for measure in results.main_measures:
                best = [measure.choose(run_values(run, measure, results.start(run))) for run in runs]
                found[epoch, measure] = median(best)
    return found


def time_to_target(run: Run, measure: Measure, target: float | None) -> float | None:
    """Return what was spent when a run first reached a target; infinity where never, None where that is not known."""
    if target is None or not run.concluded:
        return None
    for row in run.evaluations:
        value = finite(row.get(measure.key))
        if value is not None and measure.reaches(value, target):
            return row["spent"]
    return math.inf
