"""How the figures of a study look: the style of each strategy, panels, legends and limits. Imports no torch."""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from .measures import Measure
from .plan import Plan
from .store import write_atomic

DPI = 150
"""Dots per inch of the PNG files: sharp on a page that shows them at 96."""

# Okabe & Ito, "Color Universal Design" (2008), without the yellow (too pale for a line) and the vermilion (taken by the
# reds); their black is a grey here, as the constant learning rate has in the paper.
INITIAL, FINAL = "#0072B2", "#D55E00"
"""The colours of a pair: blue and vermilion of the same palette."""

_FIRST_ORDER_COLOURS = ("#595959", "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
_LINE_STYLES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (2, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib: the same glyphs on every machine
    "font.size": 10,
    "axes.titlesize": 11.5,  # not bold: a second font would take as long to embed in a PDF as the figure to draw
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # text stays text in the PDF
}


@dataclass(frozen=True)
class Style:
    """How a strategy looks in every figure: colour, line style and marker, each enough to tell it apart."""

    colour: str
    line: Any
    marker: str
    filled: bool

    @property
    def marks(self) -> dict[str, Any]:
        """The keyword arguments of a line's markers."""
        face = self.colour if self.filled else "white"
        return {"marker": self.marker, "markersize": 5, "markerfacecolor": face, "markeredgecolor": self.colour}


def styles(plan: Plan) -> dict[str, Style]:
    """Return the style of each strategy, keyed by name.

    Second-order strategies have reds that darken in the order of the plan and filled markers, the others the colours of
    Okabe and Ito and hollow markers. Line style and marker differ as well, so that strategies are told apart without
    any colour: both are repeated together only after 24 strategies of a kind.
    """
    second = [strategy for strategy in plan.strategies if strategy.is_second_order]
    first = [strategy for strategy in plan.strategies if not strategy.is_second_order]
    reds = matplotlib.colormaps["Reds"](np.linspace(0.45, 0.95, len(second)) if len(second) > 1 else [0.75])
    table: dict[str, Style] = {}
    for i, strategy in enumerate(first):
        colour = _FIRST_ORDER_COLOURS[i % len(_FIRST_ORDER_COLOURS)]
        table[strategy.name] = Style(colour, *_line_and_marker(i), False)
    for i, strategy in enumerate(second):
        colour = "#" + "".join(f"{round(255 * channel):02x}" for channel in reds[i][:3])
        table[strategy.name] = Style(colour, *_line_and_marker(i), True)
    return table


def _line_and_marker(place: int) -> tuple[Any, str]:
    return _LINE_STYLES[place % len(_LINE_STYLES)], _MARKERS[place % len(_MARKERS)]


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults and our settings, whatever the user's matplotlibrc says; undone at the end.

    A label's letter that the font does not have is drawn as a box, without a word: it stands in page and tables.
    """
    with matplotlib.style.context(["default", _RC]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def panels(count: int, *, narrow: bool, height: float | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels, up to three in a row, or one per row where the page is narrow.

    Args:
        count: How many.
        narrow: Whether they go below each other.
        height: Of a panel with its labels, in inches. Default: 2.9, or 2.6 where narrow.
    """
    columns = 1 if narrow else min(count, 3)
    rows = math.ceil(count / columns)
    width = 4.2 if narrow else 10.0 if columns > 1 else 6.5
    each = height or (2.6 if narrow else 2.9)
    figure = Figure(figsize=(width, each * rows + (0.0 if height else 1.3 if narrow else 1.2)))
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[count:]:
        axes.remove()
    for axes in grid.flat[:count]:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return figure, list(grid.flat[:count])


def freeze(figure: Figure) -> None:
    """Lay a figure out once; else this is done anew, at more cost than the drawing, for every file it is saved to."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and PDF, each whole or not at all; the same figure gives the same bytes."""
    paths = []
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        content = io.BytesIO()
        figure.savefig(content, format=suffix, dpi=DPI, metadata=metadata)
        paths.append(folder / f"{name}.{suffix}")
        write_atomic(paths[-1], content.getvalue())
    return paths


def legend(figure: Figure, axes: Axes, *, narrow: bool) -> None:
    """Put the labels of a panel below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = min(len(handles), 2 if narrow or figure.get_figwidth() < 8 else 4)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, handlelength=3)


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


def logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Give a panel a logarithmic y axis, labelled with plain numbers, where all its values are positive.

    So the small changes late in training show beside the large ones at its start. The labels are at 1, 2 and 5 times
    powers of ten, at these powers alone where the values span more than three of them.
    """
    if min(values, default=0.0) <= 0:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if max(values) > 1e3 * min(values) else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{axes.get_title(loc='left')} (logarithmic)")
