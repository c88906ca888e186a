"""Figures with the training or the budget on the x axis: curves, learning rates, reports of steps. Imports no torch."""

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ...records import as_label, legend, logarithmic, panels
from ..results import (
    TRAIN_LOSS,
    UNITS,
    Measure,
    Results,
    Run,
    bootstrap_interval,
    cg_iterations,
    finite,
    finite_values,
    measures_of,
)
from .style import FINAL, INITIAL, limit, styles


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
            values = _column(results.training, f"{split}_{measure.key}")
            if np.isfinite(values).any():
                axes.plot(epochs, values, color=colour, linestyle=line, label=split)
                axes.plot(epochs[saved], values[saved], color=colour, **dots)
                axes.plot(epochs[studied], values[studied], color=colour, **rings)
                drawn += values[np.isfinite(values)].tolist()
        for epoch in results.plan.checkpoints:
            axes.axvline(epoch, color="#999999", linestyle=":", linewidth=1, zorder=0.5)
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
    in which a run that is not finite counts as worst, with its bootstrap interval, and losses have logarithmic axes. A
    cross is the last finite value of a run that ended early.
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
            every = max(1, len(spent) // 6)
            marks = {**style.marks, "markevery": (number % every, every)}
            axes.plot(spent, middle, color=style.colour, linestyle=style.line, label=as_label(strategy.label), **marks)
            axes.fill_between(spent, lower, upper, color=style.colour, alpha=0.16, linewidth=0)
            for place, value in _early_ends(runs, measure, results.budget):
                axes.plot(place, value, marker="x", markersize=9, markeredgewidth=2, color=style.colour)
        axes.set(title=as_label(measure.heading), xlabel=_budget_label(results), xlim=(0, results.budget))
        limit(axes, drawn, start, measure)
        positive = [value for value in drawn if 0 < value <= 3 * start]
        if medians and positive and not measure.higher_is_better:
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
        axes.set(title=as_label(measure.heading), xlabel="updates")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
        limit(axes, drawn, results.checkpoint(checkpoint_epoch)[measure.key], measure)
    legend(figure, row[0], narrow=narrow)
    return figure


def learning_rates(results: Results, epochs: Sequence[int], *, narrow: bool = False) -> Figure:
    """Draw the learning rate of each run but the Hessian-free ones over the budget, a panel per checkpoint (Figure 7).

    The axis is logarithmic down to a ten-thousandth of the largest rate and linear below, so that the zero at the end
    of a cosine schedule has a place.
    """
    figure, row = panels(len(epochs), narrow=narrow)
    table = styles(results.plan)
    rates = [[lr for _, lr in found] for run in results.runs if (found := rates_of(run))]
    largest = max((float(np.quantile(each, 0.9)) for each in rates), default=0.0)  # a rate may explode for a moment
    largest = largest if largest > 0 else 1.0
    for axes, epoch in zip(row, epochs, strict=True):
        labelled: set[str] = set()
        for run in results.runs:
            rates = rates_of(run) if run.checkpoint_epoch == epoch else []
            if not rates:
                continue
            style, name = table[run.strategy.name], run.strategy.name
            label = None if name in labelled else as_label(run.strategy.label)
            labelled.add(name)
            x, y = zip(*rates, strict=True)
            drops = len(set(y)) <= len(y) // 2  # a schedule that holds and drops, not one that glides
            held = "steps-post" if drops else "default"
            axes.plot(x, y, drawstyle=held, color=style.colour, linestyle=style.line, alpha=0.85, label=label)
        axes.set_yscale("symlog", linthresh=1e-4 * largest, linscale=0.6)
        axes.set(title=f"From epoch {epoch}", xlabel=_budget_label(results), xlim=(0, results.budget))
        axes.set_ylim(0, 2 * largest)
    row[0].set_ylabel("learning rate")
    legend(figure, max(row, key=lambda axes: len(axes.get_legend_handles_labels()[0])), narrow=narrow)
    return figure


def step_reports(results: Results, checkpoint_epoch: int, *, narrow: bool = False) -> Figure:
    """Draw damping (left) and, where there are any, CG iterations (right) of second-order runs, a line per run."""
    table = styles(results.plan)
    steps = [step for run in results.runs if run.checkpoint_epoch == checkpoint_epoch for step in run.steps]
    iterates = any(iterations_of(step) is not None for step in steps)
    columns = (("Damping", damping_of), *([("CG iterations", iterations_of)] if iterates else []))
    figure, row = panels(len(columns), narrow=narrow)
    for axes, (title, column) in zip(row, columns, strict=True):
        drawn: list[float] = []
        for strategy in results.plan.strategies:
            style, label = table[strategy.name], as_label(strategy.label)
            for run in results.concluded(checkpoint_epoch, strategy):
                points = [(step["spent"], value) for step in run.steps if (value := column(step)) is not None]
                if not points:
                    continue
                x, y = zip(*points, strict=True)
                marks = {**style.marks, "markersize": 3, "markevery": max(1, len(x) // 8)}
                axes.plot(x, y, color=style.colour, linestyle=style.line, alpha=0.8, label=label, **marks)
                label = None
                drawn += y
        axes.set(title=title, xlabel=_budget_label(results), xlim=(0, results.budget))
        if title == "Damping":
            logarithmic(axes, drawn)
        else:
            axes.set_ylim(0, None if drawn else 1)
            axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend(figure, max(row, key=lambda axes: len(axes.get_legend_handles_labels()[0])), narrow=narrow)
    return figure


def overfitting(results: Results, checkpoint_epoch: int, *, narrow: bool = False) -> Figure:
    """Draw the loss on the batch that judges each step, before and after the step (paper, Figure 3).

    A panel per strategy: those whose steps are judged on the batch that suggested them first, then those with a
    disjoint batch. All panels have the same y axis; a pair of lines is a run.
    """
    pair = judged_strategies(results, checkpoint_epoch)
    figure, row = panels(len(pair), narrow=narrow)
    drawn: list[float] = []
    for axes, strategy in zip(row, pair, strict=True):
        labels: list[str | None] = ["before the step", "after the step"]
        for run in results.concluded(checkpoint_epoch, strategy):
            x = [step["spent"] for step in run.steps]
            for number, (key, colour, line, marker) in enumerate(
                (("evaluation_loss", INITIAL, "-", "o"), ("new_evaluation_loss", FINAL, "--", "^"))
            ):
                values = _column(run.steps, key)
                axes.plot(
                    x, values, color=colour, linestyle=line, marker=marker, markersize=3, alpha=0.8, linewidth=1.1,
                    markevery=max(1, len(x) // 12), label=labels[number],
                )  # fmt: skip
                labels[number] = None
                drawn += values[np.isfinite(values)].tolist()
        batch = "same batch" if strategy.judges_on_its_own_batch else "disjoint batch"
        axes.set(
            title=f"{as_label(strategy.label)}\n({batch})", xlabel=_budget_label(results), xlim=(0, results.budget)
        )
    for axes in row:
        limit(axes, drawn, drawn[0] if drawn else 0.0, TRAIN_LOSS)
    row[0].set_ylabel("loss on the judging batch")
    legend(figure, row[0], narrow=narrow)
    return figure


def judged_strategies(results: Results, checkpoint_epoch: int) -> list:
    """Return the strategies of the overfitting figure; none unless steps of both kinds have been reported."""
    told = [
        strategy
        for strategy in results.plan.strategies
        if any(finite_values(run.steps, "evaluation_loss") for run in results.concluded(checkpoint_epoch, strategy))
    ]
    pair = sorted(told, key=lambda strategy: not strategy.judges_on_its_own_batch)
    return pair if len({strategy.judges_on_its_own_batch for strategy in pair}) == 2 else []


def rates_of(run: Run) -> list[tuple[float, float]]:
    """Return what was spent and the learning rate at a run's evaluations; none where conjugate gradients find steps."""
    if not run.concluded or not run.strategy.has_rate:
        return []
    return [(row["spent"], lr) for row in run.evaluations if (lr := finite(row.get("lr"))) is not None]


def damping_of(step: dict[str, Any]) -> float | None:
    """Return the damping of a step report, None where it has none or is without, which no logarithm shows."""
    return finite(step.get("damping")) or None


def iterations_of(step: dict[str, Any]) -> float | None:
    """Return the CG iterations of a step report, None where it has none."""
    return finite(cg_iterations(step))


def _budget_label(results: Results) -> str:
    return f"{UNITS[results.plan.unit]} of the budget"


def _column(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
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
