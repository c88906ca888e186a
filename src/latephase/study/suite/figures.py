"""The figures of a suite: performance profiles over its problems, and how far each strategy is behind. No torch."""

import io
import math
from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ...records import DPI, as_label, freeze, house_style, panels
from ..page import Look, Mark, remember, styles_of
from ..results import profile
from .scores import SuiteScores
from .verdicts import name_of, ratios, ratios_of

FURTHEST = 10_000.0
"""Profiles and distances end at so many times the best at most: four digits."""

LONGEST_BESIDE = 20
"""Letters of labels of which two stand beside each other on a phone."""


def profile_figure(scores: SuiteScores, *, narrow: bool = False) -> Figure:
    """Draw the share of problems on which each strategy's median lies within a factor of the best one's.

    The performance profile of Dolan and Moré (2002), of final values in place of times; factors are logarithmic.
    """
    figure, (axes,) = panels(1, narrow=narrow, height=3.9 + (0.25 if narrow else 0.12) * len(scores.strategies))
    found = ratios(scores)
    end = _end(found.values())
    looks, taus = styles_of(scores.strategies), np.geomspace(1, end, 301)
    for number, strategy in enumerate(scores.strategies):
        look = looks[strategy.name]
        shares = [profile(found[strategy.name], tau) for tau in taus]
        marks = {**look.marks, "markevery": (6 * number % 50, 50)}
        remember(axes, Mark(Look(strategy.name, strategy.label, look), taus.tolist(), shares))
        axes.plot(taus, shares, color=look.colour, linestyle=look.line, label=as_label(strategy.label), **marks)
    _multiples(axes, 1.0, end)
    axes.set(ylim=(-0.03, 1.03), ylabel="share of the problems", title="Performance profile")
    _legend(figure, axes, narrow)
    return figure


def distance_figure(scores: SuiteScores, *, narrow: bool = False) -> Figure:
    """Draw how far each strategy's median is from the best one's, a row for each problem.

    What is further than `FURTHEST` times, or failed, is drawn at the right edge.
    """
    cases = [case for case in scores.cases if ratios_of(case)]
    height = 1.4 + 0.32 * len(cases) + (0.25 if narrow else 0.12) * len(scores.strategies)
    figure, (axes,) = panels(1, narrow=narrow, height=height)
    looks, end = styles_of(scores.strategies), _end(ratios_of(case).values() for case in cases)
    for strategy in scores.strategies:
        behind = {place: ratios_of(case).get(strategy.name) for place, case in enumerate(cases)}
        points = [(min(each, end), place) for place, each in behind.items() if each is not None]
        look, label = looks[strategy.name], as_label(strategy.label)
        if points:
            x, y = zip(*points, strict=True)
            notes = ["failed, or further" if each >= end else "" for each in x]
            remember(axes, Mark(Look(strategy.name, strategy.label, look), x, y, drawn="dots", notes=notes))
            axes.plot(x, y, color=look.colour, linestyle="", label=label, clip_on=False, **look.marks)
    _multiples(axes, 0.93, end)
    axes.set(ylim=(len(cases) - 0.5, -0.5))
    axes.set_yticks(range(len(cases)), [as_label(_short(name_of(case, scores), narrow)) for case in cases])
    axes.set_title("Distance from the best")
    _legend(figure, axes, narrow)
    return figure


def _end(rows: Iterable[Iterable[float]]) -> float:
    """The power of ten that all distances are below that are finite; from 10 to `FURTHEST`."""
    largest = max((each for row in rows for each in row if math.isfinite(each)), default=1.0)
    return min(FURTHEST, max(10.0, 10.0 ** math.ceil(math.log10(largest))))


def _multiples(axes: Axes, start: float, end: float) -> None:
    """A logarithmic axis of multiples of the best, in plain numbers."""
    axes.set_xscale("log")
    axes.set(xlim=(start, end), xlabel="median, in multiples of the best")
    ticks = [1, 2, 5, 10] if end == 10 else [tick for tick in (1, 10, 100, 1000, 10_000) if tick <= end]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes, narrow: bool) -> None:
    """Below the panel; on a phone, long labels below each other."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if narrow and max(map(len, labels), default=0) > LONGEST_BESIDE else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, handlelength=3)


def _short(name: str, narrow: bool) -> str:
    return f"{name[:17]}…" if narrow and len(name) > 18 else name


def figures(scores: SuiteScores, *, narrow: bool = False) -> dict[str, Figure]:
    """The figures of a suite by name, as far as its scores are enough: `profile`, of two rows or more, `distance`."""
    found = {}
    with house_style():
        if any(len(row) > 1 for row in ratios(scores).values()):
            found["profile"] = profile_figure(scores, narrow=narrow)
        if any(math.isfinite(each) for case in scores.cases for each in ratios_of(case).values()):
            found["distance"] = distance_figure(scores, narrow=narrow)
        for figure in found.values():
            freeze(figure)
    return found


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
