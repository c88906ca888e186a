"""How the figures of a study look: the style of each strategy, panels, legends and limits. Imports no torch."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ...records import DPI, write_atomic
from ..results import Measure, Plan
from .colours import PAGES, inks, legible

# Okabe & Ito, "Color Universal Design" (2008), without the yellow (too pale for a line) and the vermilion (taken by the
# reds); their black is a grey here, as the constant learning rate has in the paper.
INITIAL, FINAL = "#0072B2", "#D55E00"
"""The colours of a pair: blue and vermilion of the same palette."""

_FIRST_ORDER_COLOURS = ("#595959", "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
REDS = 6
"""So many reds can be told apart."""
# In print, on a light page, on a dark page: a colour map, and from where to where in it.
_FEW = (("Reds", 0.45, 0.95), ("Reds", 0.55, 1.0), ("Reds", 0.15, 0.75))
_MANY = (("magma", 0.85, 0.2), ("magma", 0.72, 0.1), ("inferno", 0.95, 0.4))
_LINE_STYLES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (2, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


class Styled(Protocol):
    """What has a style: a strategy, or whatever is told from others as strategies are."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def is_second_order(self) -> bool:
        """Whether it uses curvature."""
        ...


@dataclass(frozen=True)
class Style:
    """How a strategy looks in every figure: colour, line style and marker, each enough to tell it apart.

    ``own_inks`` are its colours on a light and a dark page, where those are not the legible ones nearest to ``colour``.
    """

    colour: str
    line: Any
    marker: str
    filled: bool
    own_inks: tuple[str, str] | None = None

    @property
    def inks(self) -> tuple[str, str]:
        """Its colours on a light and on a dark page, legible on either; in print it has `colour`."""
        return self.own_inks or inks(self.colour)

    @property
    def marks(self) -> dict[str, Any]:
        """The keyword arguments of a line's markers."""
        face = self.colour if self.filled else "white"
        return {"marker": self.marker, "markersize": 5, "markerfacecolor": face, "markeredgecolor": self.colour}


def styles(plan: Plan) -> dict[str, Style]:
    """Return the style of each strategy of a study, keyed by name; see `styles_of`."""
    return styles_of(plan.strategies)


def styles_of(strategies: Sequence[Styled]) -> dict[str, Style]:
    """Return the style of each strategy, keyed by name.

    Second-order strategies have reds that darken in their order and filled markers, the others the colours of Okabe and
    Ito and hollow markers; more than `REDS` of them go from orange over red to violet, as so many reds are hardly told
    apart. Line style and marker differ as well, so that strategies are told apart without
    any colour: both are repeated together only after 24 strategies of a kind.
    """
    second = [strategy for strategy in strategies if strategy.is_second_order]
    first = [strategy for strategy in strategies if not strategy.is_second_order]
    if len(second) > REDS:
        warm, day, night = (_map(*part, len(second)) for part in _MANY)
    else:
        warm, day, night = (_map(*part, len(second)) for part in _FEW)
    table: dict[str, Style] = {}
    for i, strategy in enumerate(first):
        colour = _FIRST_ORDER_COLOURS[i % len(_FIRST_ORDER_COLOURS)]
        table[strategy.name] = Style(colour, *_line_and_marker(i), False)
    for i, strategy in enumerate(second):
        own = legible(day[i], PAGES["light"]), legible(night[i], PAGES["dark"])
        table[strategy.name] = Style(warm[i], *_line_and_marker(i), True, own)
    return table


def _map(name: str, start: float, end: float, count: int) -> list[str]:
    """So many colours of a map; a single one from three fifths of the way."""
    places = np.linspace(start, end, count) if count > 1 else [start + 0.6 * (end - start)]
    channels = matplotlib.colormaps[name](places)
    return ["#" + "".join(f"{round(255 * channel):02x}" for channel in colour[:3]) for colour in channels]


def _line_and_marker(place: int) -> tuple[Any, str]:
    return _LINE_STYLES[place % len(_LINE_STYLES)], _MARKERS[place % len(_MARKERS)]


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and PDF, each whole or not at all; the same figure gives the same bytes."""
    paths = []
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        content = io.BytesIO()
        figure.savefig(content, format=suffix, dpi=DPI, metadata=metadata)
        paths.append(folder / f"{name}.{suffix}")
        write_atomic(paths[-1], content.getvalue())
    return paths


def limit(axes: Axes, values: Sequence[float], start: float, measure: Measure) -> None:
    """Set the y axis so that every value better than ``start`` shows and a divergence does not flatten the rest.

    On the bad side the axis ends at three times the largest gain (or the median change, where that is larger) from
    ``start``, or at the worst value where that is nearer.

    Args:
        axes: The panel.
        values: The finite values drawn.
        start: The value at the checkpoint.
        measure: What is drawn; shares are labelled in per cent.
    """
    higher = measure.higher_is_better
    if measure.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    changes = np.array([start, *values]) - start
    gain = float(changes.max() if higher else -changes.min())
    reach = 3 * max(gain, float(np.median(np.abs(changes))))
    bottom, top = float(changes.min()), float(changes.max())
    bottom, top = (max(bottom, -reach), top) if higher else (bottom, min(top, reach))
    margin = 0.05 * (top - bottom) or max(0.05 * abs(start), 1e-3)
    axes.set_ylim(start + bottom - margin, start + top + margin)
