"""The figure of a finish: held-out losses over the budget."""

import io
import math
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..records import DPI, as_label, freeze, house_style, legend, logarithmic, panels
from ..study.page import Chart, Look, Mark, Style, chart_of, remember, remember_guide, remember_shade, styles_of
from .report import FinishReport

WIDE = 10.0
"""The largest loss over the smallest, above which the axis is logarithmic."""
FAR = 100.0
"""Losses above so many times that of the start are beyond the axis."""
AXES = {"seconds": "seconds of the budget", "processor_seconds": "processor seconds of the budget", "steps": "steps"}


@dataclass(frozen=True)
class Named:
    """A contestant as figures tell it from others."""

    name: str
    is_second_order: bool


def looks_of(report: FinishReport) -> dict[str, Style]:
    """The style of each contestant by name; that of the base is a first-order strategy's in a study."""
    names = dict.fromkeys(event["name"] for event in report.events if event["name"] != "start")
    return styles_of([Named(name, name != "base") for name in names])


def images_of(report: FinishReport) -> tuple[bytes, bytes, Chart | None]:
    """The figure as PNG, for a wide page and for a phone, and what it shows."""
    found = []
    with house_style():
        figures = [course(report, narrow=narrow) for narrow in (False, True)]
        chart = chart_of(figures[0])
        for figure in figures:
            freeze(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            found.append(buffer.getvalue())
    return found[0], found[1], chart


def course(report: FinishReport, *, narrow: bool) -> Figure:
    """Held-out losses of the contestants, in the race and over the whole budget; to be drawn in the house's style."""
    race = next((event["spent"] for event in report.events if event["event"] == "winner"), report.spent)
    raced = any(event["event"] == "score" for event in report.events)
    figure, axes = panels(2 if raced else 1, narrow=narrow)
    lines = _lines(report.events)
    if raced:
        _draw(axes[0], report, lines, None)
        axes[0].set(xlim=(-0.03 * race, 1.05 * race))
        axes[0].set_title("The race")
    _draw(axes[-1], report, lines, 12)
    axes[-1].set_title("The whole budget")
    if raced:
        for each in (axes[0], axes[-1]):
            each.axvspan(0, race, color="#f0e6d0", zorder=0)
            remember_shade(each, 0.0, race)
    for each, until in zip(axes, (race, math.inf) if raced else (math.inf,), strict=True):
        shown = [y for points in lines.values() for x, y in points if x <= until and y <= FAR * abs(report.start)]
        _set_losses(each, [report.start, *shown], report.start)
    legend(figure, axes[-1], narrow=narrow)
    return figure


def _lines(events: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Points (spent, loss) of each contestant, finite ones, from the start on."""
    start = (0.0, events[0]["loss"])
    found: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        loss = event.get("loss")
        if event["event"] in ("score", "look") and loss is not None and math.isfinite(loss):
            found.setdefault(event["name"], [start]).append((event["spent"], loss))
    return found


def _draw(axes: Axes, report: FinishReport, lines: dict[str, list[tuple[float, float]]], marks: int | None) -> None:
    """Draw the lines, with about so many markers each; None for one at each point."""
    looks = looks_of(report)
    axes.axhline(report.start, color="#555555", linestyle=":", linewidth=1.0)
    remember_guide(axes, "y", report.start)
    for name, points in lines.items():
        x, y = zip(*points, strict=True)
        look = looks[name]
        remember(axes, Mark(Look(name, name, look), x, y))
        every = 1 if marks is None else max(1, len(points) // marks)
        axes.plot(x, y, color=look.colour, linestyle=look.line, label=as_label(name), markevery=every, **look.marks)
    axes.set(xlabel=AXES[report.unit], ylabel="held-out loss")


def _set_losses(axes: Axes, losses: list[float], start: float) -> None:
    low, high = min(losses), max(losses)
    if low > 0 and high > WIDE * low:
        logarithmic(axes, losses)
        axes.set_ylim(low / 1.3, 1.3 * high)
        return
    high = min(high, start + 2 * max(start - low, 0.5 * (high - start)))
    margin = 0.06 * (high - low) or max(0.05 * abs(start), 1e-3)
    axes.set_ylim(low - margin, high + margin)
