"""The paths of runs over the plane, of models with two parameters. Imports no torch."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...records import as_label, panels
from ..results import Results, Run
from .style import styles

WINDOW = 3.0
"""Distance from the start, times its larger coordinate where that exceeds one: what lies beyond is cut, so that a run
that diverges does not hide the others."""


def rosenbrock(x: np.ndarray, y: np.ndarray, a: float = 1.0, b: float = 100.0) -> np.ndarray:
    """The function (a - x)^2 + b (y - x^2)^2 of the problem of that name."""
    return (a - x) ** 2 + b * (y - x * x) ** 2


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {"rosenbrock": rosenbrock}
"""By problem, the function whose contours are drawn; it takes the problem's options."""


def has_points(runs: Iterable[Run]) -> bool:
    """Whether evaluations say where the model stands."""
    return any(len(_points(run)[0]) for run in runs)


def paths(results: Results, checkpoint_epoch: int, *, narrow: bool = False) -> Figure:
    """Draw the paths of the runs over the contours of the function, a panel per strategy, from the square to the ring.

    A cross is where a run was last seen before it left the window. Contours are logarithmic; they are drawn of
    Rosenbrock's function alone (Clarke and Hernandez-Lobato 2024, Figure 2, has the paths in one panel). All runs of a
    strategy are drawn.
    """
    table = styles(results.plan)
    shown = [s for s in results.plan.strategies if has_points(results.concluded(checkpoint_epoch, s))]
    figure, row = panels(len(shown), narrow=narrow, height=2.9)
    found = {s.name: [_points(run) for run in results.concluded(checkpoint_epoch, s)] for s in shown}
    everything = np.concatenate([points for lines in found.values() for points, _ in lines])
    low, high = everything.min(axis=0), everything.max(axis=0)
    margin = 0.08 * (high - low) + 0.05
    for axes, strategy in zip(row, shown, strict=True):
        axes.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
        _contours(axes, results)
        colour = table[strategy.name].colour
        for points, is_cut in found[strategy.name]:
            axes.plot(*points.T, color=colour, marker=".", markersize=3, linewidth=1.1)
            axes.plot(*points[:1].T, marker="s", color="#333333", markersize=5, linestyle="none")
            end: dict[str, Any] = {"marker": "x"} if is_cut else {"marker": "o", "fillstyle": "none"}
            axes.plot(*points[-1:].T, color=colour, markersize=9, linestyle="none", **end)
        axes.set_title(as_label(strategy.label))
    return figure


def _points(run: Run) -> tuple[np.ndarray, bool]:
    """Where a run was, [N, 2], as far as it is within the window, and whether it left that."""
    rows: list[Any] = [row["point"] for row in run.evaluations if "point" in row]
    points = np.array(rows, dtype=float).reshape(-1, 2)
    reach = WINDOW * max(1.0, float(np.abs(points[:1]).max(initial=0.0)))
    inside = (np.abs(points - points[:1]) <= reach).all(axis=1)  # not a number is outside
    return (points, False) if inside.all() else (points[: int(inside.argmin())], True)


def _contours(axes: Axes, results: Results) -> None:
    function = FUNCTIONS.get(results.plan.problem)
    if function is None:
        return
    x, y = np.meshgrid(np.linspace(*axes.get_xlim(), 200), np.linspace(*axes.get_ylim(), 200))
    values = np.log10(function(x, y, **results.plan.problem_options) + 1e-6)
    axes.contour(x, y, values, levels=np.arange(-2, 4, 0.5), colors="#b5b5b5", linewidths=0.6, zorder=0.5)
