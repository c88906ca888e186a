"""The pictures of these pages, from real steps on scikit-learn's digits.

    OMP_NUM_THREADS=1 python docs/pictures.py

takes some minutes, writes docs/images/*.png and prints the table of docs/damping.md. The runs are sensitive to
rounding: single numbers differ between machines, what the pictures show does not.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor, nn

from latephase import Fixed, HessianFree, LevenbergMarquardt, Objective
from latephase.curvature import damped, linearize
from latephase.curvature.preconditioners import PRECONDITIONERS
from latephase.problems import get
from latephase.records import DPI, house_style
from latephase.solve import CGResult, backtrack, conjugate_gradient

IMAGES = Path(__file__).parent / "images"
ROWS = 256
"""Images of a batch, and of a disjoint one."""
DAMPING = 1e-3
"""Small enough that candidates far along the path suit their own batch only."""
LAMBDAS = [10.0**exponent for exponent in range(0, -6, -1)]
DRAWS = 40
"""Batches drawn at the same parameters."""
BLUE, GREEN, ORANGE, RED, GREY, PINK = "#0072B2", "#009E73", "#E69F00", "#B2182B", "#595959", "#CC79A7"


def _network() -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


class Digits:
    """Images of digits, and a network after some epochs of SGD on 1,197 of them.

    Attributes:
        whole: the objective on all 1,797 images.
        test: that on the 600 images that no batch has.
    """

    def __init__(self, model: Callable[[], nn.Module] = _network, epochs: int = 1):
        splits = get("digits").load()
        parts = (splits.train, splits.valid, splits.test)
        self.inputs, self.targets = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        self.training = len(splits.train[1])
        self.generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.model = model()
        self.whole, self.test = self.objective(slice(None)), self.objective(slice(self.training, None))
        sgd = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(epochs):
            for rows in self.shuffled().split(32):
                sgd.step(self.objective(rows))

    def shuffled(self) -> Tensor:
        """The numbers of the training rows in a random order."""
        return torch.randperm(self.training, generator=self.generator)

    def objective(self, rows: Tensor | slice) -> Objective:
        """Cross-entropy with a small L2 term on some rows."""
        data = (self.inputs[rows], self.targets[rows])
        return Objective(self.model, nn.CrossEntropyLoss(), data, weight_decay=1e-4)

    def pair(self, rows: int = ROWS) -> tuple[Objective, Objective]:
        """A random batch, and another one of other rows."""
        order = self.shuffled()
        return self.objective(order[:rows]), self.objective(order[rows : 2 * rows])


def path_of(batch: Objective, damping: float = DAMPING, **options: Any) -> CGResult:
    """Conjugate gradients on a batch."""
    linear = linearize(batch)
    return conjugate_gradient(damped(linear.matvec, damping), -linear.gradient, **options)


def changes(objective: Objective, path: CGResult) -> list[float]:
    """Change of a loss at each candidate, from that of staying."""
    space = objective.space()
    theta, start = space.values(), float(objective.value())
    return [float(objective.value(space.named(theta + p))) - start for p in path.iterates]


KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "judged on the batch itself": (False, {}),
    "judged on disjoint data": (True, {}),
    "disjoint data, debias=True": (True, {"debias": True}),
    "disjoint data, damping kept at 0.01": (True, {"damping": Fixed(0.01)}),
    'disjoint data, data="objective"': (True, {"damping": LevenbergMarquardt(0.1, data="objective")}),
    "disjoint data, thresholds (-1/2, 1/4)": (True, {"damping": LevenbergMarquardt(0.1, thresholds=(-0.5, 0.25))}),
    "batch itself, damping kept at 0.01": (False, {"damping": Fixed(0.01)}),
}
"""Ways to judge steps and to set the damping: whether on other data, and options beside damping=0.1."""


def run(kind: str, rows: int = ROWS, seed: int = 0, steps: int = 40) -> tuple[list[Any], list[float]]:
    """Reports of some steps, and the losses on images that no batch has."""
    disjoint, options = KINDS[kind]
    digits = Digits()
    digits.generator.manual_seed(seed)
    optimizer = HessianFree(digits.model.parameters(), **{"damping": 0.1, **options})
    reports, losses = [], [float(digits.test.value())]
    for _ in range(steps):
        batch, other = digits.pair(rows)
        optimizer.step(batch, evaluation=other if disjoint else None)
        reports.append(optimizer.report)
        losses.append(float(digits.test.value()))
    return reports, losses


def damping_picture() -> Figure:
    """Damping, reduction ratio and loss over steps, judged on the batch itself and on other data."""
    figure, axes = _panels(3, 10.5, 3.8)
    for kind, colour, mark in zip(KINDS, (ORANGE, BLUE, GREEN, GREY), "so^v", strict=False):
        reports, losses = run(kind)
        steps = range(1, len(reports) + 1)
        axes[0].plot(steps, [r.damping for r in reports], color=colour, label=kind, marker=mark, markersize=3)
        ratios = np.clip([r.reduction_ratio for r in reports], -1.0, 1.5)
        axes[1].plot(steps, ratios, mark, color=colour, markersize=3.5)
        axes[2].plot([0, *steps], losses, color=colour, marker=mark, markersize=3)
    axes[0].set(yscale="log", title="Damping", xlabel="step")
    axes[1].set(title="Reduction ratio", xlabel="step", ylim=(-1.08, 1.58))
    for threshold in (1 / 4, 3 / 4):
        axes[1].axhline(threshold, color=RED, linewidth=1, linestyle="--")
    axes[2].set(title="Loss on images no batch has", xlabel="step", ylim=(0.09, None))
    _legend(figure, axes[0], columns=2)
    return figure


def damping_table() -> Iterator[str]:
    """Loss on images that no batch has, over the last ten of 40 steps: mean and range over four seeds."""
    yield "| | 256 rows | 598 rows | last damping, 256 rows |"
    yield "|---|---|---|---|"
    for kind in KINDS:
        cells, dampings = [], []
        for rows in (ROWS, 598):
            runs = [run(kind, rows, seed) for seed in range(1, 5)]
            means = [float(np.mean(losses[-10:])) for _, losses in runs]
            cells.append(f"{np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})")
            if rows == ROWS:
                dampings = [reports[-1].damping for reports, _ in runs]
        yield f"| {kind} | {' | '.join(cells)} | {min(dampings):.0e} to {max(dampings):.0e} |"


def progress_picture() -> Figure:
    """One step: what the model promises and what becomes of it, along conjugate gradients."""
    digits = Digits()
    batch, other = digits.pair()
    path, stopped = path_of(batch, max_iter=100, tolerance=0.0), path_of(batch)
    figure, (axes,) = _panels(1, 6.8, 4.0)
    undamped = [sum(m) - 0.5 * DAMPING * float(p @ p) for m, p in zip(path.values, path.iterates, strict=True)]
    on_other = changes(other, path)
    axes.plot(path.indices, undamped, ":", color=GREY, marker=".", label="quadratic model of the batch")
    axes.plot(path.indices, changes(batch, path), color=ORANGE, marker="s", markersize=4, label="loss on the batch")
    axes.plot(path.indices, on_other, color=BLUE, marker="o", markersize=4, label="loss on disjoint data")
    last = stopped.iterations[0]
    axes.axvline(last, color=PINK, linewidth=1.4, linestyle="--", label="Martens' rule stops here")
    count = sum(index <= last for index in path.indices)
    chosen, value = backtrack(lambda i: on_other[i], count, staying=0.0)
    axes.plot(path.indices[chosen], value, "o", markersize=11, color=RED, fillstyle="none", label="candidate chosen")
    return _over_iterations(figure, axes, "Change of the loss along one run of CG", columns=2)


def overfitting_picture() -> Figure:
    """Losses along the candidates on the batch, on disjoint data and on all data: quartiles over batches."""
    digits = Digits()
    tables: dict[str, list[list[float]]] = {"the batch itself": [], "disjoint data": [], "all 1,797 images": []}
    indices: list[int] = []
    for _ in range(DRAWS):
        batch, other = digits.pair()
        path = path_of(batch, max_iter=18, tolerance=0.0)
        indices = path.indices
        for label, objective in zip(tables, (batch, other, digits.whole), strict=True):
            tables[label].append(changes(objective, path))
    figure, (axes,) = _panels(1, 6.8, 4.0)
    for (label, rows), colour, mark in zip(tables.items(), (ORANGE, BLUE, GREY), "so^", strict=True):
        low, middle, high = np.quantile(np.array(rows), [0.25, 0.5, 0.75], axis=0)
        axes.plot(indices, middle, color=colour, marker=mark, markersize=4, label=label)
        axes.fill_between(indices, low, high, color=colour, alpha=0.18, linewidth=0)
    return _over_iterations(figure, axes, "Change of the loss at each candidate", columns=3)


def preconditioner_picture() -> Figure:
    """Iterations of conjugate gradients that a small residual takes, over the damping."""
    figure, panels = _panels(2, 9.0, 3.9)
    networks = (("one hidden layer", Digits()), ("CNN of the digits problem", Digits(get("digits").model, epochs=3)))
    names = [None, *PRECONDITIONERS]
    for axes, (title, digits) in zip(panels, networks, strict=True):
        linear = linearize(digits.objective(slice(0, 1024)))
        blocks = [linear.gradient.numel()]
        for name, colour, mark in zip(names, (GREY, ORANGE, GREEN, BLUE, PINK), "osv^D", strict=True):
            method = None if name is None else PRECONDITIONERS[name]()
            estimate = {} if method is None else method.estimate(linear, blocks)
            counts = []
            for damping in LAMBDAS:
                inverse = None if method is None else method.inverse(estimate, damping, blocks)
                multiply = damped(linear.matvec, damping)
                options = {"preconditioner": inverse, "stopping": "residual", "tolerance": 1e-2, "max_iter": 1000}
                counts += conjugate_gradient(multiply, -linear.gradient, **options).iterations
            axes.plot(LAMBDAS, counts, color=colour, marker=mark, markersize=4, label=name or "none")
        axes.set(xscale="log", yscale="log", title=title, xlabel="damping")
        axes.invert_xaxis()
        _plain(axes)
    panels[0].set(ylabel="iterations until |r| < 0.01 |b|")
    _legend(figure, panels[0], columns=5)
    return figure


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False).flat)


def _legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, handlelength=3)


def _over_iterations(figure: Figure, axes: Axes, title: str, columns: int) -> Figure:
    """The figure with the axes of changes of a loss over iterations."""
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set(xscale="log", title=title, xlabel="iteration of CG")
    _plain(axes, x=True)
    _legend(figure, axes, columns=columns)
    return figure


def _plain(axes: Axes, x: bool = False) -> None:
    """Plain numbers on a logarithmic axis."""
    axis = axes.xaxis if x else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


PICTURES: dict[str, Callable[[], Figure]] = {
    "damping": damping_picture,
    "cg-progress": progress_picture,
    "mini-batch-overfitting": overfitting_picture,
    "preconditioners": preconditioner_picture,
}


def main() -> None:
    """Draw every picture."""
    for name, picture in PICTURES.items():
        with house_style():
            picture().savefig(IMAGES / f"{name}.png", dpi=DPI, metadata={"Software": None})
    print("\n".join(damping_table()))


if __name__ == "__main__":
    main()
