"""Figures in one style: fonts, panels, legends, the same bytes for the same data."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

DPI = 150
"""Dots per inch of the PNG files: sharp on a page that shows them at 96."""


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


def legend(figure: Figure, axes: Axes, *, narrow: bool) -> None:
    """Put the labels of a panel below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = min(len(handles), 2 if narrow or figure.get_figwidth() < 8 else 4)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, handlelength=3)


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
