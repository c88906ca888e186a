"""Quadratic learning rates (AdamQLR, SGDQLR) in NumPy float64, and functions with derivatives written by hand.

Clarke and Hernandez-Lobato (ICML 2024), Sections 3.1 to 3.4: a first-order direction d, the curvature along it
C = d'Md + lambda d'd, the learning rate g'd / C, and a damping lambda that adapts. Nothing here knows torch.

Every function is a network followed by a loss on its outputs z. With z' and z'' the first and second derivative of
z(theta + t d) at t = 0, the Gauss-Newton matrix gives d'Gd = z' H z', with H the Hessian of the loss actually minimised
in the outputs, and the Hessian gives d'Gd + (dL/dz) z''. `dense` forms the matrices themselves by complex steps.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Batch = tuple[Array, Array]
Jet = tuple[Array, Array, Array]


@dataclass(frozen=True)
class MLP:
    """z = tanh(x W1' + b1) W2' + b2; theta is W1, b1, W2, b2, each row by row, as torch.nn.Linear stores them."""

    sizes: tuple[int, int, int]

    def parts(self, theta: Array) -> list[Array]:
        i, h, o = self.sizes
        shapes = [(h, i), (h,), (o, h), (o,)]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(theta, ends[:-1]), shapes, strict=True)]

    def outputs(self, theta: Array, inputs: Array) -> Array:
        w1, b1, w2, b2 = self.parts(theta)
        return np.tanh(inputs @ w1.T + b1) @ w2.T + b2

    def jet(self, theta: Array, d: Array, inputs: Array) -> Jet:
        (w1, b1, w2, b2), (v1, c1, v2, c2) = self.parts(theta), self.parts(d)
        h, a1 = np.tanh(inputs @ w1.T + b1), inputs @ v1.T + c1
        h1 = (1 - h**2) * a1
        h2 = -2 * h * (1 - h**2) * a1**2
        return h @ w2.T + b2, h @ v2.T + h1 @ w2.T + c2, 2 * h1 @ v2.T + h2 @ w2.T

    def pull_back(self, theta: Array, inputs: Array, slopes: Array) -> Array:
        w1, b1, w2, _ = self.parts(theta)
        h = np.tanh(inputs @ w1.T + b1)
        back = (slopes @ w2) * (1 - h**2)
        return np.concatenate([(back.T @ inputs).ravel(), back.sum(0), (slopes.T @ h).ravel(), slopes.sum(0)])


class Rosenbrock:
    """The residuals (1 - x, 10 (y - x^2)), whose sum of squares is Rosenbrock's function with a = 1, b = 100."""

    def outputs(self, theta: Array, inputs: Array) -> Array:
        x, y = theta
        return np.array([[1 - x, 10 * (y - x**2)]])

    def jet(self, theta: Array, d: Array, inputs: Array) -> Jet:
        x, (dx, dy) = theta[0], d
        first = np.array([[-dx, 10 * (dy - 2 * x * dx)]])
        return self.outputs(theta, inputs), first, np.array([[0.0, -20 * dx**2]])

    def pull_back(self, theta: Array, inputs: Array, slopes: Array) -> Array:
        (s, u), x = slopes[0], theta[0]
        return np.array([-s - 20 * x * u, 10 * u])


@dataclass(frozen=True)
class SquaredError:
    """s |z - y|^2 with s = 1 / (N O) for "mean" (torch.nn.MSELoss), 1 / (2 N) for "half", 1 for "sum".

    H = 2 s I: with O outputs, the Gauss-Newton matrix of "half" is O / 2 times that of "mean".
    """

    kind: Literal["mean", "half", "sum"]

    def scale(self, z: Array) -> float:
        return {"mean": 1 / z.size, "half": 0.5 / len(z), "sum": 1.0}[self.kind]

    def value(self, z: Array, targets: Array) -> Any:
        return self.scale(z) * ((z - targets) ** 2).sum()

    def slopes(self, z: Array, targets: Array) -> Array:
        return 2 * self.scale(z) * (z - targets)

    def curvature(self, z: Array, u: Array, targets: Array) -> float:
        return 2 * self.scale(z) * float((u**2).sum())


class CrossEntropy:
    """Mean over the rows of -log softmax(z)[target]; there, the Gauss-Newton and the Fisher matrix are the same."""

    def log_softmax(self, z: Array) -> Array:
        shifted = z - z.real.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    def value(self, z: Array, targets: Array) -> Any:
        return -self.log_softmax(z)[np.arange(len(z)), targets].mean()

    def slopes(self, z: Array, targets: Array) -> Array:
        return (np.exp(self.log_softmax(z)) - np.eye(z.shape[1])[targets]) / len(z)

    def curvature(self, z: Array, u: Array, targets: Array) -> float:
        p = np.exp(self.log_softmax(z))
        return float(((p * u**2).sum(1) - (p * u).sum(1) ** 2).mean())


@dataclass(frozen=True)
class Function:
    """f(theta) = loss(network(theta, inputs), targets).

    A network has its outputs [N, O], their derivatives along a direction (`jet`), and products with the transposed
    Jacobian (`pull_back`); a loss its value, its gradient in the outputs [N, O], and u' H u with its Hessian H in them.
    """

    network: Any
    loss: Any

    def value(self, theta: Array, batch: Batch) -> Any:
        return self.loss.value(self.network.outputs(theta, batch[0]), batch[1])

    def gradient(self, theta: Array, batch: Batch) -> Array:
        slopes = self.loss.slopes(self.network.outputs(theta, batch[0]), batch[1])
        return self.network.pull_back(theta, batch[0], slopes)

    def curvature(self, theta: Array, d: Array, batch: Batch, kind: str) -> float:
        """d'Md with M the Gauss-Newton matrix ("ggn") or the Hessian ("hessian")."""
        z, first, second = self.network.jet(theta, d, batch[0])
        ggn = self.loss.curvature(z, first, batch[1])
        return ggn if kind == "ggn" else ggn + float((self.loss.slopes(z, batch[1]) * second).sum())

    def dense(self, theta: Array, batch: Batch) -> tuple[Array, Array, Array]:
        """Gradient [P], Gauss-Newton matrix and Hessian [P, P] by complex steps, without the rules of the jets."""
        step, eye = 1e-30, np.eye(len(theta))

        def slope(f: Callable[[Array], Any]) -> Array:
            return np.array([np.imag(f(theta + 1j * step * e)) / step for e in eye])

        z = self.network.outputs(theta, batch[0])
        jacobian = slope(lambda t: self.network.outputs(t, batch[0]).ravel()).T
        columns = np.eye(z.size).reshape(-1, *z.shape)
        inner = [np.imag(self.loss.slopes(z + 1j * step * c, batch[1])).ravel() / step for c in columns]
        hessian = slope(lambda t: self.gradient(t, batch))
        return slope(lambda t: self.value(t, batch)), jacobian.T @ np.array(inner) @ jacobian, hessian


@dataclass(frozen=True)
class Settings:
    """One configuration; `adam`: whether the direction is Adam's, or g."""

    adam: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    curvature: Literal["ggn", "hessian"] = "ggn"
    damping: float = 1e-3
    damping_factors: tuple[float, float] | None = (0.5, 2.0)
    damping_range: tuple[float, float] = (1e-8, math.inf)
    damping_rule: Literal["ratio", "decreasing_loss"] = "ratio"
    lr_clip: float | None = None
    amplification: float = 1.0
    absolute_curvature: bool = False
    reduction_ratio: Literal["damped", "undamped"] = "damped"


@dataclass(frozen=True)
class Record:
    """One step.

    f before it and at the point it tried; lr; lambda in it and after it; theta after it; the direction d, the slope
    g'd, the predicted change of f, and which limits took hold.
    """

    loss: float
    new_loss: float
    lr: float
    damping: float
    next_damping: float
    accepted: bool
    theta: Array
    direction: Array
    slope: float
    predicted: float
    limited: frozenset[str]


@dataclass
class QuadraticLR:
    """The optimizer: `step` moves `theta` [P] and returns the `Record`."""

    settings: Settings
    theta: Array
    base: dict[str, Any] = field(default_factory=dict)
    damping: float = 0.0

    def __post_init__(self):
        self.damping = self.settings.damping
        self.base = {"t": 0, "m": np.zeros_like(self.theta), "v": np.zeros_like(self.theta)}

    def step(self, function: Function, batch: Batch) -> Record:
        s, theta, damping, old_base = self.settings, self.theta, self.damping, dict(self.base)
        loss, g = float(function.value(theta, batch)), function.gradient(theta, batch)
        limited = set()
        d = self.direction(g)
        slope, undamped = float(g @ d), function.curvature(theta, d, batch, s.curvature)
        c = undamped + damping * float(d @ d)
        if s.absolute_curvature:
            limited |= {"curvature"} if c < 0 else set()
            c, undamped = abs(c), abs(undamped)
        lr = slope / c
        if s.lr_clip is not None and abs(lr) > s.lr_clip:
            lr = math.copysign(s.lr_clip, lr)
            limited.add("lr")
        lr = s.amplification * lr
        trial = theta - lr * d
        new_loss = float(function.value(trial, batch))
        predicted = 0.5 * lr**2 * (c if s.reduction_ratio == "damped" else undamped) - lr * slope
        accepted = self.adapt(loss, new_loss, predicted)
        if accepted:
            self.theta = trial
        else:
            self.base = old_base
        moved = (loss, new_loss, lr, damping, self.damping, accepted, self.theta)
        return Record(*moved, d, slope, predicted, frozenset(limited))

    def direction(self, g: Array) -> Array:
        """g, or the bias-corrected direction of Adam (Kingma and Ba 2015, Algorithm 1)."""
        if not self.settings.adam:
            return g
        (b1, b2), t = self.settings.betas, self.base["t"] + 1
        m, v = b1 * self.base["m"] + (1 - b1) * g, b2 * self.base["v"] + (1 - b2) * g**2
        self.base = {"t": t, "m": m, "v": v}
        return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + self.settings.eps)

    def adapt(self, loss: float, new_loss: float, predicted: float) -> bool:
        """Set lambda for the next step; whether this one is taken."""
        s = self.settings
        if s.damping_factors is None:
            return True
        decrease, increase = s.damping_factors
        accepted = True
        if s.damping_rule == "decreasing_loss":
            accepted = new_loss <= loss  # not so where either is not a number
            factor = decrease if accepted else increase
        else:
            rho = (new_loss - loss) / predicted
            factor = decrease if rho > 0.75 else increase if rho < 0.25 else 1.0
        self.damping = min(max(self.damping * factor, s.damping_range[0]), s.damping_range[1])
        return accepted


def run(settings: Settings, function: Function, start: Array, batches: Iterable[Batch]) -> list[Record]:
    """The records of one step on each batch, from `start` [P]."""
    optimizer = QuadraticLR(settings, np.array(start, dtype=np.float64))
    return [optimizer.step(function, batch) for batch in batches]
