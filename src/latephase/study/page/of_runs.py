"""Figures with a line per run: learning rates, reports of steps, the losses that judge them. Imports no torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...records import as_label, legend, logarithmic, panels
from ..results import TRAIN_LOSS, Results, Run, cg_iterations, finite, finite_values
from .charts import Look, Mark, remember
from .over_time import budget_label, column_of
from .style import FINAL, INITIAL, Style, limit, styles

KINDS = ("before the step", "after the step")
"""What the two lines of a run in `overfitting` are."""


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
            look = Look(name, run.strategy.label, style)
            remember(axes, Mark(look, x, y, drawn="steps" if drops else "line", notes=[f"seed {run.seed}"] * len(x)))
            axes.plot(x, y, drawstyle=held, color=style.colour, linestyle=style.line, alpha=0.85, label=label)
        axes.set_yscale("symlog", linthresh=1e-4 * largest, linscale=0.6)
        axes.set(title=f"From epoch {epoch}", xlabel=budget_label(results), xlim=(0, results.budget))
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
                look = Look(strategy.name, strategy.label, style)
                remember(axes, Mark(look, x, y, notes=[f"seed {run.seed}"] * len(x)))
        axes.set(title=title, xlabel=budget_label(results), xlim=(0, results.budget))
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
        labels: list[str | None] = list(KINDS)
        for run in results.concluded(checkpoint_epoch, strategy):
            x = [step["spent"] for step in run.steps]
            for number, (key, colour, line, marker) in enumerate(
                (("evaluation_loss", INITIAL, "-", "o"), ("new_evaluation_loss", FINAL, "--", "^"))
            ):
                values = column_of(run.steps, key)
                axes.plot(
                    x, values, color=colour, linestyle=line, marker=marker, markersize=3, alpha=0.8, linewidth=1.1,
                    markevery=max(1, len(x) // 12), label=labels[number],
                )  # fmt: skip
                labels[number] = None
                look = Look(key, KINDS[number], Style(colour, line, marker, True))
                remember(axes, Mark(look, x, values.tolist(), notes=[f"seed {run.seed}"] * len(x)))
                drawn += values[np.isfinite(values)].tolist()
        batch = "same batch" if strategy.judges_on_its_own_batch else "disjoint batch"
        axes.set(title=f"{as_label(strategy.label)}\n({batch})", xlabel=budget_label(results), xlim=(0, results.budget))
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
