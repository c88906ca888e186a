"""Figures of the scores: relative performance, time to target, performance profiles. Imports no torch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...records import as_label, legend, panels
from ..results import (
    PROFILE_LIMIT,
    TARGETS,
    UNITS,
    Measure,
    Results,
    Score,
    Standing,
    Strategy,
    amount_text,
    bootstrap_interval,
    profile,
    relative_values,
    standings,
    target_times,
)
from .charts import Look, Mark, remember, remember_guide
from .style import styles


def relative_performance(
    results: Results, scores: Sequence[Score], strategies: Sequence[Strategy], *, narrow: bool = False
) -> Figure:
    """Draw the relative performance of every concluded run over the checkpoints (paper, Figures 1 and 5).

    One marker is one run, shifted sideways per strategy by less than a third of the checkpoints' spacing; a line joins
    the means of a strategy. 0 and 1 are the worst and the best run of the strategies given.
    """
    figure, row = panels(len(results.main_measures), narrow=narrow)
    table = styles(results.plan)
    names = [strategy.name for strategy in strategies]
    shown = [entry for entry in scores if entry.strategy in names]
    shifts = np.linspace(-0.3, 0.3, len(strategies)) if len(strategies) > 1 else [0.0]
    size = 5.0 if len(strategies) * len(results.plan.checkpoints) <= 40 else 3.0
    places = {epoch: place for place, epoch in enumerate(results.plan.checkpoints)}
    for axes, measure in zip(row, results.main_measures, strict=True):
        known = zip(shown, relative_values(shown, measure), strict=True)
        done = [(entry, value) for entry, value in known if entry.concluded]
        for strategy, shift in zip(strategies, shifts, strict=True):
            style = table[strategy.name]
            pairs = [(places[e.checkpoint_epoch], value) for e, value in done if e.strategy == strategy.name]
            x, values = np.array(pairs, dtype=float).reshape(-1, 2).T
            dots: dict[str, Any] = {**style.marks, "markersize": size}
            axes.plot(x + shift, values, linestyle="none", alpha=0.5, **dots)
            means = [values[x == place].mean() if (x == place).any() else math.nan for place in places.values()]
            centres = [place + shift for place in places.values()]
            look = Look(strategy.name, strategy.label, style)
            seeds = [f"seed {e.seed}" for e, _ in done if e.strategy == strategy.name]
            runs = Mark(look, (x + shift).tolist(), values.tolist(), drawn="dots", notes=seeds)
            remember(axes, runs, Mark(look, centres, means, notes=["mean"] * len(means)))
            axes.plot(
                centres, means, color=style.colour, linestyle=style.line, label=as_label(strategy.label), **style.marks
            )
        axes.set(title=as_label(f"Best {measure.name}"), xlabel="checkpoint (epoch)", ylim=(-0.05, 1.05))
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.set_xticks(list(places.values()), [str(epoch) for epoch in places])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 worst", "0.25", "0.5", "0.75", "1 best"])
    legend(figure, row[0], narrow=narrow)
    return figure


def target_bars(results: Results, scores: Sequence[Score], epoch: int, *, narrow: bool = False) -> Figure:
    """Draw the time to target of each strategy from one checkpoint, for the train loss and the test measure.

    A bar is the median over the concluded runs, with its 95% bootstrap interval; a run that missed counts as infinite.
    A hatched bar over the whole budget is a median that missed.
    """
    strategies = results.plan.strategies
    figure, row = panels(2, narrow=narrow, height=1.2 + 0.34 * len(strategies))
    for axes, (measure, column) in zip(row, _targets(results), strict=True):
        for place, strategy in enumerate(strategies):
            times = [
                time
                for entry in scores
                if (entry.checkpoint_epoch, entry.strategy) == (epoch, strategy.name)
                and (time := entry.number(column)) is not None
            ]
            _bar(axes, place, times, results, Look(strategy.name, strategy.label, styles(results.plan)[strategy.name]))
        axes.set(title=as_label(f"Target in {measure.name}"), xlabel=f"{UNITS[results.plan.unit]} to the target")
        axes.set(xlim=(0, (1.8 if narrow else 1.42) * results.budget), ylim=(len(strategies) - 0.4, -0.6))
        axes.axvline(results.budget, color="#555555", linewidth=1, linestyle=":")
        remember_guide(axes, "x", results.budget)
        axes.set_yticks(range(len(strategies)), [as_label(strategy.label) for strategy in strategies])
        axes.grid(visible=False, axis="y")
        if narrow:
            axes.xaxis.set_major_locator(MaxNLocator(3))
    if not narrow:
        row[1].set_yticklabels([])
    return figure


def performance_profile(results: Results, scores: Sequence[Score], *, narrow: bool = False) -> Figure:
    """Draw the performance profiles over the study's checkpoints; see `draw_profile`."""
    found = []
    for measure, column in _targets(results):
        times = target_times(results, scores, column)
        found.append((measure.name, standings(times, results.plan.baseline) if times else []))
    labels = {strategy.name: as_label(strategy.label) for strategy in results.plan.strategies}
    return draw_profile(found, labels, styles(results.plan), narrow=narrow)


def draw_profile(
    found: Sequence[tuple[str, Sequence[Standing]]], labels: dict[str, str], table: dict[str, Any], *, narrow: bool
) -> Figure:
    """Draw performance profiles: the share of the cases in which a strategy takes at most tau times the best time.

    Args:
        found: A title and standings per panel, of one study or of several (`latephase.study.results.profiles.combine`).
        labels: What each strategy is called, by its name.
        table: The style of each strategy, by its name; see `latephase.study.page.style.styles`.
        narrow: Panels below each other, for a phone.
    """
    figure, row = panels(len(found), narrow=narrow)
    taus = np.linspace(1, PROFILE_LIMIT, 301)
    for axes, (title, rows) in zip(row, found, strict=True):
        for number, standing in enumerate(rows):
            style = table[standing.name]
            shares = [profile(standing.ratios, tau) for tau in taus]
            marks = {**style.marks, "markevery": (8 * number, 60)}
            axes.plot(taus, shares, color=style.colour, linestyle=style.line, label=labels[standing.name], **marks)
            remember(axes, Mark(Look(standing.name, labels[standing.name], style), taus.tolist(), shares))
        axes.set(title=as_label(f"Target in {title}"), xlabel="time, in multiples of the best", xlim=(1, PROFILE_LIMIT))
        axes.set(ylim=(-0.03, 1.03), ylabel="share of the cases")
    legend(figure, max(row, key=lambda axes: len(axes.get_lines())), narrow=narrow)
    return figure


def _targets(results: Results) -> list[tuple[Measure, str]]:
    return list(zip(results.main_measures[:2], TARGETS.values(), strict=True))


def _bar(axes: Axes, place: int, times: Sequence[float], results: Results, look: Look) -> None:
    """A strategy's bar: the median, its interval and how many runs missed."""
    colour = look.style.colour
    if not times:
        axes.text(0.01 * results.budget, place, "no run yet", va="center", fontsize=8.5, color="#5c5c62")
        return
    middle, missed = float(np.median(times)), sum(map(math.isinf, times))
    note = f"{missed} of {len(times)} missed" if missed else ""
    if math.isinf(middle):
        axes.barh(place, results.budget, height=0.62, color="white", edgecolor=colour, hatch="///", linewidth=0.8)
        end = results.budget
    else:
        axes.barh(place, middle, height=0.62, color=colour, alpha=0.75)
        end, note = middle, f"{amount_text(middle, results.plan.unit).partition(chr(160))[0]}{note and ', '}{note}"
    interval = bootstrap_interval(times, "median")
    ends = tuple(zip(interval or (middle, middle), strict=True))
    shown = [min(middle, results.budget)]
    said = [f"missed by {missed} of {len(times)} runs" if missed else ""]
    remember(axes, Mark(look, shown, [place], *ends, drawn="dots", across=True, notes=said))
    if interval and not math.isinf(middle):
        lower, upper = interval[0], min(interval[1], 1.04 * results.budget)
        axes.plot([lower, upper], [place, place], color="#1d1d1f", linewidth=1.4)
        axes.plot(lower, place, marker="|", color="#1d1d1f")
        axes.plot(upper, place, marker=">" if math.isinf(interval[1]) else "|", markersize=5, color="#1d1d1f")
        end = max(end, upper)
    axes.text(end + 0.02 * results.budget, place, note, va="center", fontsize=8.5)
