"""The problems of Rathore et al. (2024, "Challenges in Training PINNs: A Loss Landscape Perspective").

The loss is the mean squared residual of the equation on points of the domain's interior, plus those of the initial and
of the boundary condition. It is badly conditioned, which is why these problems belong here: Adam and then L-BFGS stop
far from a minimum.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..metrics import relative_l2_error
from ..problem import Batch, Problem, Splits, TrainingSetting
from .network import tanh_layers
from .terms import forward, gradient, term, variable

PLACES, TIMES = 257, 101
"""Points of the grid along x and t, with the edges."""
INTERIOR_POINTS = 10_000
"""How many of the 255 x 100 points inside the grid the equation is asked to hold at."""
SEED = 0
"""Of the choice of these points."""


@dataclasses.dataclass(frozen=True)
class Equation:
    """A differential equation for u(x, t) on 0 <= x <= extent, 0 <= t <= 1, with a known value at t = 0.

    The boundary condition is u(0, t) = u(extent, t), unless a class says otherwise. Models map points [N, 2] to values
    [N, 1].

    Attributes:
        extent: where x ends.
        boundary_conditions: how many numbers should vanish on the boundary at each time.
    """

    extent: ClassVar[float] = 2 * math.pi
    boundary_conditions: ClassVar[int] = 1

    def solution(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The exact u(x, t)."""
        raise NotImplementedError

    def interior(self, model: nn.Module, points: Tensor) -> Tensor:
        """The equation's residual [N, 1] at points [N, 2]."""
        raise NotImplementedError

    def initial(self, model: nn.Module, points: Tensor) -> Tensor:
        """What the initial condition is about [N, k], at points [N, 2] with t = 0."""
        return model(points)

    def initial_targets(self, x: np.ndarray) -> np.ndarray:
        """What it should be [N, k], for x [N]."""
        return self.solution(x, np.zeros_like(x))[:, None]

    def boundary(self, model: nn.Module, pairs: Tensor) -> Tensor:
        """What should vanish on the boundary [N, k], for pairs [N, 2, 2] of a lower and an upper point."""
        lower, upper = pairs.unbind(1)
        return model(upper) - model(lower)


@dataclasses.dataclass(frozen=True)
class Convection(Equation):
    """u_t + beta u_x = 0, u(x, 0) = sin x, periodic: a wave that runs to the right."""

    beta: float

    def solution(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The exact u(x, t)."""
        return np.sin(x - self.beta * t)

    def interior(self, model: nn.Module, points: Tensor) -> Tensor:
        """The equation's residual [N, 1] at points [N, 2]."""
        points = variable(points)
        u_x, u_t = _derivatives(model(points), points)
        return u_t + self.beta * u_x


@dataclasses.dataclass(frozen=True)
class Reaction(Equation):
    """u_t = rho u (1 - u), u(x, 0) = exp(-(x - pi)^2 / (2 (pi / 4)^2)), periodic: a bump that saturates."""

    rho: float

    def solution(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The exact u(x, t)."""
        start = np.exp(-0.5 * ((x - np.pi) / (np.pi / 4)) ** 2)
        grown = start * np.exp(self.rho * t)
        return grown / (grown + 1 - start)

    def interior(self, model: nn.Module, points: Tensor) -> Tensor:
        """The equation's residual [N, 1] at points [N, 2]."""
        points = variable(points)
        u = model(points)
        _, u_t = _derivatives(u, points)
        return u_t - self.rho * u * (1 - u)


@dataclasses.dataclass(frozen=True)
class Wave(Equation):
    """u_tt = 4 u_xx on 0 <= x <= 1, at rest at first, fixed at both ends: two standing waves, one beta times as fast.

    u(x, 0) = sin(pi x) + 0.5 sin(beta pi x), u_t(x, 0) = 0, u(0, t) = u(1, t) = 0.
    """

    beta: float
    extent: ClassVar[float] = 1.0
    boundary_conditions: ClassVar[int] = 2

    def solution(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The exact u(x, t)."""
        slow = np.sin(np.pi * x) * np.cos(2 * np.pi * t)
        return slow + 0.5 * np.sin(self.beta * np.pi * x) * np.cos(2 * self.beta * np.pi * t)

    def interior(self, model: nn.Module, points: Tensor) -> Tensor:
        """The equation's residual [N, 1] at points [N, 2]."""
        points = variable(points)
        u_x, u_t = _derivatives(model(points), points)
        u_xx, _ = _derivatives(u_x, points)
        _, u_tt = _derivatives(u_t, points)
        return u_tt - 4 * u_xx

    def initial(self, model: nn.Module, points: Tensor) -> Tensor:
        """Values u and u_t [N, 2] at points [N, 2] with t = 0."""
        points = variable(points)
        u = model(points)
        _, u_t = _derivatives(u, points)
        return torch.cat([u, u_t], dim=1)

    def initial_targets(self, x: np.ndarray) -> np.ndarray:
        """What they should be [N, 2], for x [N]."""
        u = self.solution(x, np.zeros_like(x))
        return np.stack([u, np.zeros_like(u)], axis=1)

    def boundary(self, model: nn.Module, pairs: Tensor) -> Tensor:
        """What should vanish on the boundary [N, 2]: u at both ends."""
        lower, upper = pairs.unbind(1)
        return torch.cat([model(lower), model(upper)], dim=1)


def _derivatives(values: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives [N, 1] in x and in t of values [N, 1] at points [N, 2], each row's value being of its own point."""
    slopes = gradient(values, points)
    return slopes[:, :1], slopes[:, 1:]


def build_model(width: int) -> nn.Sequential:
    """The network: points [N, 2] -> values [N, 1], three hidden tanh layers; Xavier's normal weights, biases zero."""
    return tanh_layers((2, width, width, width, 1))


def load(equation: Equation, count: int) -> Splits:
    """The points, which are the same always.

    Training: `count` of the 255 x 100 points inside the grid, chosen once for all, 257 initial points, and 101 points
    on each end. Test: the exact solution on all 257 x 101 points of the grid; that of the published program takes every
    other x of these. Validation: the solution in the middles between them.
    """
    x, t = _axes(equation)
    chosen = np.random.RandomState(SEED).choice(len(_inside(x, t)), count, replace=False)
    parts = (_grid((x[1:] + x[:-1]) / 2, (t[1:] + t[:-1]) / 2), _grid(x, t))
    valid, test = ([_batch("solution", points, equation.solution(*points.T)[:, None])] for points in parts)
    return Splits(_train(equation, chosen), valid, test)


def redraw(equation: Equation, count: int, generator: torch.Generator) -> list[Batch]:
    """Training data with another `count` of the 255 x 100 points inside the grid."""
    chosen = torch.randperm(len(_inside(*_axes(equation))), generator=generator)[:count]
    return _train(equation, chosen.numpy())


def _axes(equation: Equation) -> tuple[np.ndarray, np.ndarray]:
    return np.linspace(0.0, equation.extent, PLACES), np.linspace(0.0, 1.0, TIMES)


def _inside(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return _grid(x[1:-1], t[1:])


def _train(equation: Equation, chosen: np.ndarray) -> list[Batch]:
    """The three batches, with these of the points inside the grid."""
    x, t = _axes(equation)
    ends = np.stack([_grid(x[:1], t), _grid(x[-1:], t)], axis=1)
    return [
        _batch("interior", _inside(x, t)[chosen], np.zeros((len(chosen), 1))),
        _batch("initial", _grid(x, t[:1]), equation.initial_targets(x)),
        _batch("boundary", ends, np.zeros((TIMES, equation.boundary_conditions))),
    ]


def _grid(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """All pairs of places and times [len(x) len(t), 2]."""
    return np.stack([axis.ravel() for axis in np.meshgrid(x, t)], axis=1)


def _batch(key: str, points: np.ndarray, targets: np.ndarray) -> Batch:
    return term(key, torch.from_numpy(points), torch.from_numpy(targets))


def _problem(equation: Equation, formula: str, width: int, points: int, lr: float) -> Problem:
    if not 1 <= points <= (PLACES - 2) * (TIMES - 1):
        raise ValueError(f"points must be from 1 to {(PLACES - 2) * (TIMES - 1):,}, all inside the grid, got {points}")
    name = type(equation).__name__.lower()
    return Problem(
        name=f"pinn_{name}",
        version=1,
        title=f"PINN: {name}",
        description=(
            f"A network with three hidden layers of {width} tanh units is to solve {formula}; mean squared residuals "
            f"of the equation at {points:,} points, of the initial condition at 257 and of the boundary condition at "
            "101."
        ),
        model=functools.partial(build_model, width),
        loss=nn.MSELoss(reduction="sum"),
        forward=functools.partial(forward, equation=equation),
        load=functools.partial(load, equation, points),
        redraw=functools.partial(redraw, equation, points),
        training=TrainingSetting(lr=lr, batch_size=None, epochs=41_000, optimizer="adam"),
        metrics=(relative_l2_error,),
        source=(
            "Rathore, Lei, Frangella, Lu and Udell (2024), Challenges in Training PINNs: A Loss Landscape Perspective, "
            "and its program"
        ),
    )


def pinn_convection(*, width: int = 200, beta: float = 40.0, points: int = INTERIOR_POINTS) -> Problem:
    """The convection equation. Published relative errors: 4.2e-3 by Adam and L-BFGS, 1.9e-3 with NysNewton-CG after.

    The setting is the published one of Adam's phase, for all of the paper's 41,000 steps.

    Args:
        width: units of each hidden layer. Default 200, which the paper's fine-tuning by second-order steps has.
        beta: speed. Default 40, as in the paper.
        points: of the equation, inside the grid. Default 10,000, as in the paper.
    """
    return _problem(Convection(beta), f"u_t + {beta:g} u_x = 0 with u(x, 0) = sin x, periodic", width, points, 1e-4)


def pinn_reaction(*, width: int = 200, rho: float = 5.0, points: int = INTERIOR_POINTS) -> Problem:
    """The reaction equation. Published relative errors: 1.9e-2 by Adam and L-BFGS, 9.9e-3 with NysNewton-CG after.

    Args:
        width: as in `pinn_convection`.
        rho: growth rate. Default 5, as in the paper.
        points: as in `pinn_convection`.
    """
    return _problem(Reaction(rho), f"u_t = {rho:g} u (1 - u), from a bump", width, points, 1e-3)


def pinn_wave(*, width: int = 200, beta: float = 5.0, points: int = INTERIOR_POINTS) -> Problem:
    """The wave equation. Published relative errors: 5.5e-2 by Adam and L-BFGS, 1.3e-2 with NysNewton-CG after.

    Args:
        width: as in `pinn_convection`.
        beta: frequency of the faster of the two waves, relative to the slower one; a whole number, so that both fit.
            Default 5, as in the paper.
        points: as in `pinn_convection`.
    """
    formula = f"u_tt = 4 u_xx, two standing waves of relative frequency {beta:g}"
    return _problem(Wave(beta), formula, width, points, 1e-4)
