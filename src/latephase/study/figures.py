"""The figures of a study: training curve, relative performance, performance and learning rate over the budget.

Built with matplotlib's objects on the Agg canvas, without pyplot and so without global state; the same result files
give the same bytes. Imports no torch.
"""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .results import Results, Run, finite, finite_values, load_results
from .score import Score, score_results
from .style import DPI, house_style, legend, limit, logarithmic, panels, styles


def draw(directory: str | os.PathLike[str]) -> list[Path]:
    """Draw every figure of a study into its folder ``figures``, as PNG and PDF.

    Args:
        directory: The study's folder; its training is finished, its runs may be missing, under way or failed.

    Returns:
        The files written: ``training``, ``relative``, one ``budget-EPOCH`` per checkpoint and, where a strategy has
        learning rates, ``learning_rates``.

    Raises:
        FileNotFoundError: There is no ``study.toml``.
        ValueError: The training is not finished or has no finite evaluation at a checkpoint.
    """
    folder = Path(directory) / "figures"
    folder.mkdir(exist_ok=True)
    paths: list[Path] = []
    with house_style():
        for name, figure in build(load_results(directory)).items():
            for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                paths.append(folder / f"{name}.{suffix}")
                figure.savefig(paths[-1], dpi=DPI, metadata=metadata)
    return paths


def render(results: Results, *, narrow: bool = False) -> dict[str, bytes]:
    """Return every figure as the bytes of a PNG, keyed by name; narrow: panels below each other, for a phone."""
    images: dict[str, bytes] = {}
    with house_style():
        for name, figure in build(results, narrow=narrow).items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            images[name] = buffer.getvalue()
    return images


def build(results: Results, *, narrow: bool = False) -> dict[str, Figure]:
    """Build every figure of a study, keyed by name; see `draw`."""
    with house_style():
        figures = {"training": training_curve(results, narrow=narrow)}
        figures["relative"] = relative_performance(results, score_results(results), narrow=narrow)
        for epoch in results.plan.checkpoints:
            figures[f"budget-{epoch:04d}"] = over_budget(results, epoch, narrow=narrow)
        if any(_learning_rates(run) for run in results.runs):
            figures["learning_rates"] = learning_rates(results, narrow=narrow)
    return figures


def training_curve(results: Results, *, narrow: bool = False) -> Figure:
    """Draw train and test loss (left) and accuracy (right) over the epochs of the first-order training.

    Dots are the checkpoints saved; rings and dotted verticals are those that the study starts from.
    """
    figure, row = panels(2, narrow=narrow)
    epochs = np.array([entry["epoch"] for entry in results.training])
    saved = np.isin(epochs, results.training_status.get("checkpoint_epochs", results.plan.checkpoints))
    studied = np.isin(epochs, results.plan.checkpoints)
    dots = {"linestyle": "none", "marker": "o", "markersize": 3}
    rings = {"linestyle": "none", "marker": "o", "markersize": 8, "fillstyle": "none"}
    for axes, metric in zip(row, ("loss", "accuracy"), strict=True):
        for split, colour, line in (("train", "#595959", "-"), ("test", "#0072B2", "--")):
            values = _column(results.training, f"{split}_{metric}")
            axes.plot(epochs, values, color=colour, linestyle=line, label=split)
            axes.plot(epochs[saved], values[saved], color=colour, **dots)
            axes.plot(epochs[studied], values[studied], color=colour, **rings)
        for epoch in results.plan.checkpoints:
            axes.axvline(epoch, color="#999999", linestyle=":", linewidth=1, zorder=0.5)
        axes.set(xlabel="epoch", title=metric.capitalize())
    logarithmic(row[0], finite_values(results.training, "train_loss") + finite_values(results.training, "test_loss"))
    row[1].yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    row[0].plot([], [], color="#595959", label="checkpoint saved", **dots)
    row[0].plot([], [], color="#595959", label="checkpoint studied", **rings)
    legend(figure, row[0], narrow=narrow)
    return figure


def relative_performance(results: Results, scores: Sequence[Score], *, narrow: bool = False) -> Figure:
    """Draw the relative train loss (left) and test accuracy (right) of every concluded run over the checkpoints.

    One marker is one run, shifted sideways per strategy; a line joins the means of a strategy.
    """
    figure, row = panels(2, narrow=narrow)
    table = styles(results.plan)
    strategies = results.plan.strategies
    shifts = np.linspace(-0.3, 0.3, len(strategies)) if len(strategies) > 1 else [0.0]
    places = {epoch: place for place, epoch in enumerate(results.plan.checkpoints)}
    titles = {"relative_train_loss": "Best train loss", "relative_test_accuracy": "Best test accuracy"}
    for axes, (metric, title) in zip(row, titles.items(), strict=True):
        for strategy, shift in zip(strategies, shifts, strict=True):
            style = table[strategy.name]
            rows = [entry for entry in scores if entry.strategy == strategy.name and entry.concluded]
            values = np.array([getattr(entry, metric) for entry in rows])
            x = np.array([places[entry.checkpoint_epoch] for entry in rows], dtype=float)
            axes.plot(x + shift, values, linestyle="none", alpha=0.55, **style.marks)
            means = [values[x == place].mean() if (x == place).any() else math.nan for place in places.values()]
            centres = [place + shift for place in places.values()]
            axes.plot(centres, means, color=style.colour, linestyle=style.line, label=strategy.label, **style.marks)
        axes.set(title=title, xlabel="checkpoint (epoch)", ylim=(-0.05, 1.05), xlim=(-0.5, len(places) - 0.5))
        axes.set_xticks(list(places.values()), [str(epoch) for epoch in places])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 worst", "0.25", "0.5", "0.75", "1 best"])
    legend(figure, row[0], narrow=narrow)
    return figure


def over_budget(results: Results, checkpoint_epoch: int, *, narrow: bool = False) -> Figure:
    """Draw train loss, test loss and test accuracy over the seconds of the budget, from one checkpoint.

    A line is the mean over the concluded runs that are finite at that second, its band reaches from the lower to the
    upper quartile, and a cross is the last finite value of a run that ended early.
    """
    figure, row = panels(3, narrow=narrow)
    table = styles(results.plan)
    titles = {"train_loss": "Train loss", "test_loss": "Test loss", "test_accuracy": "Test accuracy"}
    for axes, (metric, title) in zip(row, titles.items(), strict=True):
        drawn: list[float] = []
        for number, strategy in enumerate(results.plan.strategies):
            style = table[strategy.name]
            runs = results.concluded(checkpoint_epoch, strategy)
            seconds, mean, lower, upper = _band(runs, metric)
            every = max(1, len(seconds) // 6)
            marks = {**style.marks, "markevery": (number % every, every)}
            axes.plot(seconds, mean, color=style.colour, linestyle=style.line, label=strategy.label, **marks)
            axes.fill_between(seconds, lower, upper, color=style.colour, alpha=0.16, linewidth=0)
            for second, value in _early_ends(runs, metric, results.budget_seconds):
                axes.plot(second, value, marker="x", markersize=9, markeredgewidth=2, color=style.colour)
            drawn += [*mean, *lower, *upper]
        axes.set(title=title, xlabel="seconds of the budget", xlim=(0, results.budget_seconds))
        limit(axes, drawn, results.checkpoint(checkpoint_epoch)[metric], metric)
    legend(figure, row[0], narrow=narrow)
    return figure


def learning_rates(results: Results, *, narrow: bool = False) -> Figure:
    """Draw the learning rate of each first-order run over the budget, one panel per checkpoint.

    The axis is logarithmic down to a ten-thousandth of the largest rate and linear below, so that the zero at the end
    of a cosine schedule has a place.
    """
    epochs = results.plan.checkpoints
    figure, row = panels(len(epochs), narrow=narrow)
    table = styles(results.plan)
    largest = max((lr for run in results.runs for _, lr in _learning_rates(run)), default=0.0) or 1.0
    for axes, epoch in zip(row, epochs, strict=True):
        labelled: set[str] = set()
        for run in results.runs:
            rates = _learning_rates(run) if run.checkpoint_epoch == epoch else []
            if not rates:
                continue
            style, name = table[run.strategy.name], run.strategy.name
            label = None if name in labelled else run.strategy.label
            labelled.add(name)
            x, y = zip(*rates, strict=True)
            drops = len(set(y)) <= len(y) // 2  # a schedule that holds and drops, not one that glides
            held = "steps-post" if drops else "default"
            axes.plot(x, y, drawstyle=held, color=style.colour, linestyle=style.line, alpha=0.85, label=label)
        axes.set_yscale("symlog", linthresh=1e-4 * largest, linscale=0.6)
        axes.set(title=f"From epoch {epoch}", xlabel="seconds of the budget", xlim=(0, results.budget_seconds))
        axes.set_ylim(0, 2 * largest)
    row[0].set_ylabel("learning rate")
    legend(figure, max(row, key=lambda axes: len(axes.get_legend_handles_labels()[0])), narrow=narrow)
    return figure


def _column(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """A field of journal rows, NaN where it is not finite."""
    return np.array([math.nan if (value := finite(row.get(key))) is None else value for row in rows], dtype=float)


def _band(runs: Sequence[Run], metric: str) -> tuple[list[float], np.ndarray, np.ndarray, np.ndarray]:
    """Mean and quartiles over the runs at each second where at least one is finite."""
    groups: dict[float, list[float]] = {}
    for run in runs:
        for row in run.evaluations:
            if (value := finite(row.get(metric))) is not None:
                groups.setdefault(row["seconds"], []).append(value)
    seconds = sorted(groups)
    mean = np.array([fmean(groups[second]) for second in seconds], dtype=float)
    quartiles = np.array([np.quantile(groups[second], [0.25, 0.75]) for second in seconds], dtype=float).reshape(-1, 2)
    return seconds, mean, quartiles[:, 0], quartiles[:, 1]


def _early_ends(runs: Sequence[Run], metric: str, budget: float) -> list[tuple[float, float]]:
    """Second and value of the last finite evaluation of each run that has none at the end of the budget."""
    ends: list[tuple[float, float]] = []
    for run in runs:
        rows = [(row["seconds"], value) for row in run.evaluations if (value := finite(row.get(metric))) is not None]
        if rows and rows[-1][0] < budget * (1 - 1e-6):  # the grid's last point is the budget up to rounding
            ends.append(rows[-1])
    return ends


def _learning_rates(run: Run) -> list[tuple[float, float]]:
    """Seconds and learning rates of a first-order run's evaluation rows."""
    if run.strategy.is_hessian_free or not run.concluded:
        return []
    return [(row["seconds"], lr) for row in run.evaluations if (lr := finite(row.get("lr"))) is not None]
