"""Figures of curves over the training, the budget or the updates, a line per strategy. Imports no torch."""

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ...records import as_label, legend, logarithmic, panels
from ..results import (
    UNITS,
    Measure,
    Results,
    Run,
    bootstrap_interval,
    finite,
    measures_of,
)
from .charts import Look, Mark, remember, remember_guide
from .style import Style, limit, styles

WIDE = 10.0
"""The loss at the start over the lowest one, above which the axis is logarithmic."""


def training_curve(results: Results, *, narrow: bool = False) -> Figure:
    """Draw the loss and each metric of the training over its epochs, on train and test data (paper, Figure 4).

    Dots are the checkpoints saved; rings and dotted verticals are those that the study starts from.
    """
    own = measures_of(results.problem["metrics"])[2:]
    figure, row = panels(1 + len(own), narrow=narrow)
    epochs = np.array([entry["epoch"] for entry in results.training])
    saved = np.isin(epochs, results.training_status.get("checkpoint_epochs", results.plan.checkpoints))
    studied = np.isin(epochs, results.plan.checkpoints)
    dots = {"linestyle": "none", "marker": "o", "markersize": 3}
    rings = {"linestyle": "none", "marker": "o", "markersize": 8, "fillstyle": "none"}
    shown = [Measure("loss", False), *(Measure(m.key.removeprefix("test_"), m.higher_is_better) for m in own)]
    for axes, measure in zip(row, shown, strict=True):
        drawn: list[float] = []
        for split, colour, line in (("train", "#595959", "-"), ("test", "#0072B2", "--")):
            values = column_of(results.training, f"{split}_{measure.key}")
            if np.isfinite(values).any():
                axes.plot(epochs, values, color=colour, linestyle=line, label=split)
                axes.plot(epochs[saved], values[saved], color=colour, **dots)
                axes.plot(epochs[studied], values[studied], color=colour, **rings)
                drawn += values[np.isfinite(values)].tolist()
                remember(
                    axes, Mark(Look(split, split, Style(colour, line, "o", True)), epochs.tolist(), values.tolist())
                )
        for epoch in results.plan.checkpoints:
            axes.axvline(epoch, color="#999999", linestyle=":", linewidth=1, zorder=0.5)
            remember_guide(axes, "x", epoch)
        axes.set(xlabel="epoch", title=as_label(measure.heading))
        if measure.is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
        else:
            logarithmic(axes, drawn)
    row[0].plot([], [], color="#595959", label="checkpoint saved", **dots)
    row[0].plot([], [], color="#595959", label="checkpoint studied", **rings)
    legend(figure, row[0], narrow=narrow)
    return figure


def over_budget(results: Results, checkpoint_epoch: int, *, narrow: bool = False) -> Figure:
    """Draw losses and test metrics over the budget, from one checkpoint (paper, Figures 2 and 6).

    A line is the mean over the concluded runs that are finite at that point, and its band reaches from the lower to the
    upper quartile. In a plan whose curves are medians (Clarke and Hernandez-Lobato 2024, Figure 3), it is the median,
    in which a run that is not finite counts as worst, with its bootstrap interval, and losses have logarithmic axes; so
    have losses of any plan that fall to less than a tenth. A cross is the last finite value of a run that ended early.
    """
    figure, row = panels(len(results.measures), narrow=narrow)
    table, medians = styles(results.plan), results.plan.curves == "median"
    for axes, measure in zip(row, results.measures, strict=True):
        drawn: list[float] = []
        start = results.checkpoint(checkpoint_epoch)[measure.key]
        far = 1e6 * max(abs(start), 1.0)
        for number, strategy in enumerate(results.plan.strategies):
            style = table[strategy.name]
            runs = results.concluded(checkpoint_epoch, strategy)
            spent, middle, lower, upper = (_medians if medians else _band)(runs, measure)
            drawn += [value for value in (*middle, *lower, *upper) if math.isfinite(value)]
            lower, upper = np.clip((lower, upper), -far, far)  # up to the edge where runs are not finite
            look = Look(strategy.name, strategy.label, style)
            remember(axes, Mark(look, spent, middle.tolist(), lower.tolist(), upper.tolist()))
            every = max(1, len(spent) // 6)
            marks = {**style.marks, "markevery": (number % every, every)}
            axes.plot(spent, middle, color=style.colour, linestyle=style.line, label=as_label(strategy.label), **marks)
            axes.fill_between(spent, lower, upper, color=style.colour, alpha=0.16, linewidth=0)
            for place, value in _early_ends(runs, measure, results.budget):
                axes.plot(place, value, marker="x", markersize=9, markeredgewidth=2, color=style.colour)
        axes.set(title=as_label(measure.heading), xlabel=budget_label(results), xlim=(0, results.budget))
        limit(axes, drawn, start, measure)
        positive = [value for value in drawn if 0 < value <= 3 * start]
        falls = bool(positive) and start > WIDE * min(positive)
        if (medians or falls) and positive and not measure.higher_is_better:
            logarithmic(axes, positive)
            axes.set_ylim(0.8 * min(positive), 1.25 * max(start, *positive))
    legend(figure, row[0], narrow=narrow)
    return figure


def over_updates(results: Results, checkpoint_epoch: int, *, narrow: bool = False) -> Figure:
    """Draw losses and test metrics over the number of updates, from one checkpoint, for budgets in other units.

    A line is the mean over the concluded runs of updates and of values at each evaluation.
    """
    figure, row = panels(len(results.measures), narrow=narrow)
    table = styles(results.plan)
    for axes, measure in zip(row, results.measures, strict=True):
        drawn: list[float] = []
        for strategy in results.plan.strategies:
            style, runs = table[strategy.name], results.concluded(checkpoint_epoch, strategy)
            _, values, _, _ = _band(runs, measure)
            _, updates, _, _ = _band(runs, Measure("step", False), beside=measure)
            axes.plot(
                updates, values, color=style.colour, linestyle=style.line, label=as_label(strategy.label), **style.marks
            )
            drawn += list(values)
            remember(axes, Mark(Look(strategy.name, strategy.label, style), updates.tolist(), values.tolist()))
        axes.set(title=as_label(measure.heading), xlabel="updates")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
        limit(axes, drawn, results.checkpoint(checkpoint_epoch)[measure.key], measure)
    legend(figure, row[0], narrow=narrow)
    return figure


def budget_label(results: Results) -> str:
    """The label of an axis of the budget."""
    return f"{UNITS[results.plan.unit]} of the budget"


def column_of(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """A field of journal rows, NaN where it is not finite."""
    return np.array([math.nan if (value := finite(row.get(key))) is None else value for row in rows], dtype=float)


def _band(
    runs: Sequence[Run], measure: Measure, beside: Measure | None = None
) -> tuple[list[float], np.ndarray, np.ndarray, np.ndarray]:
    """Mean and quartiles over the runs at each point of the budget where at least one, and `beside`, is finite."""
    groups: dict[float, list[float]] = {}
    for run in runs:
        for row in run.evaluations:
            value = finite(row.get(measure.key))
            if value is not None and (beside is None or finite(row.get(beside.key)) is not None):
                groups.setdefault(row["spent"], []).append(value)
    spent = sorted(groups)
    mean = np.array([fmean(groups[point]) for point in spent], dtype=float)
    quartiles = np.array([np.quantile(groups[point], [0.25, 0.75]) for point in spent], dtype=float).reshape(-1, 2)
    return spent, mean, quartiles[:, 0], quartiles[:, 1]


def _medians(runs: Sequence[Run], measure: Measure) -> tuple[list[float], np.ndarray, np.ndarray, np.ndarray]:
    """Median and its bootstrap interval over the runs at each point; what is not finite counts as worst.

    A run that has ended before a point is not finite there. Of a single run the interval is the value itself.
    """
    worst = -math.inf if measure.higher_is_better else math.inf
    found = [{row["spent"]: finite(row.get(measure.key)) for row in run.evaluations} for run in runs]
    spent = sorted(set().union(*found))
    values = [[worst if (value := at.get(point)) is None else value for at in found] for point in spent]
    ends = [bootstrap_interval(sample, "median") or sample * 2 for sample in values]
    middle = np.array([median(sample) for sample in values], dtype=float)
    lower, upper = np.array(ends, dtype=float).reshape(-1, 2).T
    return spent, np.where(np.isfinite(middle), middle, math.nan), lower, upper


def _early_ends(runs: Sequence[Run], measure: Measure, budget: float) -> list[tuple[float, float]]:
    """Place and value of the last finite evaluation of each run that has none at the end of the budget."""
    ends: list[tuple[float, float]] = []
    for run in runs:
        rows = [(row["spent"], value) for row in run.evaluations if (value := finite(row.get(measure.key))) is not None]
        if rows and rows[-1][0] < budget * (1 - 1e-6):  # the grid's last point is the budget up to rounding
            ends.append(rows[-1])
    return ends
