"""What the figures of a page show, as data from which its script draws them anew: zoomed, hovered, by strategy.

A figure is drawn once, by matplotlib; whoever draws it also says here what each line means, so that print and screen
show the same numbers. Imports no torch.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from ...records import visible, without_passwords
from .colours import class_of
from .style import Style

MOST = 400
"""Points of a line at most, of which more are thinned: nobody sees more on a panel, and pages stay small."""

DASHES: dict[Any, list[int]] = {"-": [], "--": [7, 4], "-.": [8, 3, 2, 3], ":": [2, 3]}


@dataclass(frozen=True)
class Look:
    """What a line or dot is told from others by, and what the page calls it.

    Attributes:
        key: what is shown and hidden together, in all figures of a page.
        label: what readers call it.
        style: colour, line and marker.
    """

    key: str
    label: str
    style: Style


@dataclass(frozen=True)
class Mark:
    """A line, or a row of dots, of one panel.

    Attributes:
        look: whose it is.
        x: of its points.
        y: of its points.
        low: lower ends of a band or of intervals; none where there are none.
        high: upper ends.
        drawn: "line", "steps" (it holds each value to the next point), or "dots".
        across: whether the intervals are of x.
        notes: what is said of each point beside its numbers.
    """

    look: Look
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    drawn: str = "line"
    across: bool = False
    notes: Sequence[str] = ()


@dataclass
class _Panel:
    marks: list[Mark] = field(default_factory=list)
    guides: list[tuple[str, float]] = field(default_factory=list)
    shades: list[tuple[float, float]] = field(default_factory=list)


_PANELS: WeakKeyDictionary[Axes, _Panel] = WeakKeyDictionary()


def remember(axes: Axes, *marks: Mark) -> None:
    """Say what was drawn into a panel."""
    _PANELS.setdefault(axes, _Panel()).marks.extend(marks)


def remember_guide(axes: Axes, direction: str, place: float) -> None:
    """Say that a dotted line was drawn: `direction` is "x" where it stands at a value of x, "y" at one of y."""
    _PANELS.setdefault(axes, _Panel()).guides.append((direction, place))


def remember_shade(axes: Axes, start: float, end: float) -> None:
    """Say that a panel is shaded between two values of x."""
    _PANELS.setdefault(axes, _Panel()).shades.append((start, end))


@dataclass(frozen=True)
class Chart:
    """A figure's data as JSON, and the inks in it, for a light and a dark page."""

    data: str
    inks: tuple[tuple[str, str], ...]


def chart_of(figure: Figure) -> Chart | None:
    """What a figure shows, for the page's script; None where nothing was said of it.

    Args:
        figure: as it was drawn, its axes scaled and limited.
    """
    known = [(axes, panel) for axes in figure.axes if (panel := _PANELS.get(axes)) and panel.marks]
    if not known:
        return None
    looks = {mark.look.key: mark.look for _, panel in known for mark in panel.marks}
    places = {key: place for place, key in enumerate(looks)}
    table = {
        "keys": [_key(look) for look in looks.values()],
        "panels": [_panel(axes, panel, places) for axes, panel in known],
    }
    _name_rows(table["panels"])
    data = json.dumps(table, separators=(",", ":"), allow_nan=False)
    return Chart(data, tuple(dict.fromkeys(look.style.inks for look in looks.values())))


def _name_rows(panels: Sequence[dict[str, Any]]) -> None:
    """Give panels beside the first one the names of its axis and rows, written once where panels share them."""
    first = panels[0]["y"].get("ticks", [])
    for panel in panels[1:]:
        panel["y"]["label"] = panel["y"]["label"] or panels[0]["y"]["label"]
        ticks = panel["y"].get("ticks", [])
        if first and len(ticks) == len(first) and not any(text for _, text in ticks):
            panel["y"]["ticks"] = first


def letters(text: str) -> str:
    """A text as the page says it, with nothing that would steer the reader's browser."""
    return visible(without_passwords(text))


def _key(look: Look) -> dict[str, Any]:
    style = look.style
    dash = DASHES.get(style.line) if isinstance(style.line, str) else [3 * part for part in style.line[1]]
    return {
        "key": letters(look.key),
        "label": letters(look.label),
        "ink": class_of(style.inks),
        "inks": list(style.inks),
        "dash": dash or [],
        "marker": style.marker,
        "filled": style.filled,
    }


def _panel(axes: Axes, panel: _Panel, places: dict[str, int]) -> dict[str, Any]:
    title = letters(axes.get_title(loc="left") or axes.get_title()).replace(r"\$", "$").strip()
    found = {
        "title": title,
        "x": _axis(axes.xaxis, axes.get_xlim(), axes.get_xscale()),
        "y": _axis(axes.yaxis, axes.get_ylim(), axes.get_yscale()),
        "marks": [_mark(mark, places) for mark in panel.marks if len(mark.x)],
    }
    found["x"]["label"] = found["x"]["label"] or title  # a panel about a value has its name above it
    if panel.guides:
        found["guides"] = [[direction, number(place)] for direction, place in panel.guides]
    if panel.shades:
        found["shades"] = [[number(start), number(end)] for start, end in panel.shades]
    return found


def _axis(axis: Axis, limits: tuple[float, float], scale: str) -> dict[str, Any]:
    low, high = sorted(map(float, limits))
    found: dict[str, Any] = {"label": letters(axis.get_label_text()), "scale": scale, "range": [low, high]}
    if limits[0] > limits[1]:
        found["falls"] = True
    if scale == "symlog":
        found["threshold"] = axis.get_transform().linthresh  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(axis.get_major_formatter(), PercentFormatter):
        found["percent"] = True
    if isinstance(axis.get_major_locator(), FixedLocator):
        texts = [letters(tick.get_text()).replace(r"\$", "$") for tick in axis.get_ticklabels()]
        found["ticks"] = [[number(place), text] for place, text in zip(axis.get_ticklocs(), texts, strict=True)]
    return found


def _mark(mark: Mark, places: dict[str, int]) -> dict[str, Any]:
    kept = thinned(len(mark.x))
    found: dict[str, Any] = {"of": places[mark.look.key], "x": _numbers(mark.x, kept), "y": _numbers(mark.y, kept)}
    if len(mark.low):
        found |= {"low": _numbers(mark.low, kept), "high": _numbers(mark.high, kept)}
    if mark.drawn != "line":
        found["drawn"] = mark.drawn
    if mark.across:
        found["across"] = True
    if any(mark.notes):
        found["notes"] = [letters(mark.notes[place]) for place in kept]
    return found


def thinned(count: int) -> list[int]:
    """Places of the points of a line that are kept, `MOST` at most, the first and the last among them."""
    if count <= MOST:
        return list(range(count))
    return sorted({round(place * (count - 1) / (MOST - 1)) for place in range(MOST)})


def _numbers(values: Sequence[float], kept: Iterable[int]) -> list[float | None]:
    return [number(values[place]) for place in kept]


def number(value: float) -> float | None:
    """A number with six digits, which no panel is fine enough to show; None where it is not finite."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None
