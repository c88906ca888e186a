"""Equations in one place and time whose solution has no closed form: Burgers, Allen and Cahn, Korteweg and de Vries."""

import dataclasses
import functools
import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..problem import Problem
from .equation import SHARE, About, BoxEquation, box_problem
from .points import grid
from .reference import INTERVALS, allen_cahn, burgers, korteweg_de_vries, on_grid
from .terms import derivative, gradient, variable

RAISSI = "Raissi, Perdikaris and Karniadakis (2019), Physics-informed neural networks"
PLACES = 257
"""Of the grid on which the error is measured, with both ends; its times are those of `reference`."""
VISCOSITY = 0.01 / math.pi
"""Of Burgers' equation."""
DIFFUSION, REACTION = 1e-4, 5.0
"""Of the equation of Allen and Cahn."""
DISPERSION = 0.0025
"""Of the equation of Korteweg and de Vries."""


@dataclasses.dataclass(frozen=True)
class Evolution(BoxEquation):
    """u_t + ... = 0 on -1 <= x <= 1, 0 <= t <= 1, from a known beginning."""

    def start(self, x: Tensor) -> Tensor:
        """u(x, 0)."""
        raise NotImplementedError

    def prescribed(self, points: Tensor) -> Tensor:
        """The beginning [N, 1] at points [N, 2] with t = 0; and zero at the ends of x."""
        x, t = points[:, :1], points[:, 1:]
        return torch.where((t == 0) & (x.abs() < 1), self.start(x), 0.0) if not self.periodic else self.start(x)

    def constrained(self, points: Tensor, values: Tensor) -> Tensor:
        """The beginning and t times the values, times 1 - x^2 where u is zero at both ends: [N, 1]."""
        x, t = points[:, :1], points[:, 1:]
        return self.start(x) + (t if self.periodic else t * (1 - x.square())) * values

    def reference(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The solution [len(t), len(x)] at the times of `reference`."""
        raise NotImplementedError

    def test(self) -> tuple[Tensor, Tensor]:
        """A grid of points [N, 2] and the solution there [N, 1]."""
        return self.grid(), _values_on_grid(type(self))

    def grid(self) -> Tensor:
        """The points [N, 2] of the grid; x runs fastest."""
        return grid(self.box, (PLACES, INTERVALS + 1))


@functools.cache
def _values_on_grid(kind: type[Evolution]) -> Tensor:
    """The solution [N, 1] of an equation on its grid: it takes up to a second, and is the same for all its problems."""
    equation = kind()
    points = equation.grid()
    x, t = points[:PLACES, 0], points[::PLACES, 1]
    u = torch.from_numpy(equation.reference(x.numpy(), t.numpy()))
    u[0] = equation.start(x)
    return u.reshape(-1, 1)


@dataclasses.dataclass(frozen=True)
class Burgers(Evolution):
    """u_t + u u_x = nu u_xx, u(x, 0) = -sin(pi x), u(-1, t) = u(1, t) = 0: a wave that steepens to a shock at x = 0."""

    def start(self, x: Tensor) -> Tensor:
        """u(x, 0)."""
        return -torch.sin(torch.pi * x)

    def interior(self, model: nn.Module, points: Tensor) -> Tensor:
        """The equation's residual [N, 1] at points [N, 2]."""
        points = variable(points)
        u = model(points)
        slopes = gradient(u, points)
        u_x, u_t = slopes[:, :1], slopes[:, 1:]
        return u_t + u * u_x - VISCOSITY * derivative(u_x, points, 0)

    def reference(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The solution [len(t), len(x)]."""
        return burgers(x, t, VISCOSITY)


@dataclasses.dataclass(frozen=True)
class AllenCahn(Evolution):
    """u_t = 0.0001 u_xx + 5 u - 5 u^3, u(x, 0) = x^2 cos(pi x), periodic: regions of -1 and 1 with sharp edges."""

    periodic: ClassVar[int] = 2

    def start(self, x: Tensor) -> Tensor:
        """u(x, 0)."""
        return x.square() * torch.cos(torch.pi * x)

    def interior(self, model: nn.Module, points: Tensor) -> Tensor:
        """The equation's residual [N, 1] at points [N, 2]."""
        points = variable(points)
        u = model(points)
        slopes = gradient(u, points)
        u_xx = derivative(slopes[:, :1], points, 0)
        return slopes[:, 1:] - DIFFUSION * u_xx - REACTION * u * (1 - u.square())

    def constrained(self, points: Tensor, values: Tensor) -> Tensor:
        """The values: they are periodic, but the beginning is not met.

        It has a kink where the ends meet, which diffusion takes away at once. With t times a smooth function added to
        it, the kink would stay.
        """
        return values

    def terms(self, points: int) -> dict[str, int]:
        """How many points each term has: the beginning is one of them in any case."""
        return super().terms(points) | {"initial": points // SHARE}

    def reference(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The solution [len(t), len(x)]."""
        return on_grid(allen_cahn(), x)


@dataclasses.dataclass(frozen=True)
class KortewegDeVries(Evolution):
    """u_t + u u_x + 0.0025 u_xxx = 0, u(x, 0) = cos(pi x), periodic: a wave that breaks up into solitons."""

    periodic: ClassVar[int] = 3

    def start(self, x: Tensor) -> Tensor:
        """u(x, 0)."""
        return torch.cos(torch.pi * x)

    def interior(self, model: nn.Module, points: Tensor) -> Tensor:
        """The equation's residual [N, 1] at points [N, 2]."""
        points = variable(points)
        u = model(points)
        slopes = gradient(u, points)
        u_x, u_t = slopes[:, :1], slopes[:, 1:]
        u_xxx = derivative(derivative(u_x, points, 0), points, 0)
        return u_t + u * u_x + DISPERSION * u_xxx

    def reference(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The solution [len(t), len(x)]."""
        return on_grid(korteweg_de_vries(), x)


def pinn_burgers(*, width: int = 20, depth: int = 4, points: int = 1_600, hard: bool = False) -> Problem:
    """Burgers' equation with a viscosity of 0.01 / pi. Test error against the solution of Cole and Hopf.

    Args:
        width: units of each hidden layer. Default 20.
        depth: hidden layers. Default 4, which makes the 1,341 parameters of Kiyani et al. (2025).
        points: of the interior; an eighth of them on the beginning, and on the ends. Default 1,600, so that a direct
            solve takes part of a second on one core; 10,000 are usual in papers.
        hard: beginning and ends are met by construction: u = -sin(pi x) + t (1 - x^2) times the network.

    Raises:
        ValueError: a size or `hard` is none.
    """
    about = About(
        "burgers",
        "Burgers",
        "u_t + u u_x = 0.01 / pi u_xx with u(x, 0) = -sin(pi x), u = 0 at x = -1 and 1",
        f"{RAISSI}; the network of Kiyani et al. (2025), Optimizing the Optimizer for Physics-Informed Neural Networks "
        "and Kolmogorov-Arnold Networks",
        "Relative errors published by Kiyani et al. (2025), 1,341 parameters in float64: 2.1e-3 by L-BFGS, 7.6e-8 by "
        "self-scaled Broyden; by the authors of DSGNAR (2026, arXiv 2607.02194) on an H100: 4.8e-7 after 9.8 s in "
        "float32, 8e-14 after 346 s in float64.",
    )
    return box_problem(Burgers(hard), about, width=width, depth=depth, points=points)


def pinn_allen_cahn(*, width: int = 30, depth: int = 3, points: int = 1_600, hard: bool = False) -> Problem:
    """The equation of Allen and Cahn with sharp edges. Test error against a Fourier series.

    The network is that of Urban, Stefanou and Pons (2025), who train on 15,000 points, drawn anew where residuals are
    large, with `hard` and ten times the weight on the beginning. On all of 0 <= t <= 1 at once this equation is hard: a
    network that satisfies it nearly everywhere may be another solution than the one from this beginning.

    Args:
        width: units of each hidden layer. Default 30, as published.
        depth: hidden layers. Default 3, as published.
        points: as in `pinn_burgers`.
        hard: u is periodic by construction, x being given to the network as cos(pi x) and sin(pi x). The beginning
            stays a term of the loss.

    Raises:
        ValueError: a size or `hard` is none.
    """
    about = About(
        "allen_cahn",
        "Allen-Cahn",
        "u_t = 0.0001 u_xx + 5 u - 5 u^3 with u(x, 0) = x^2 cos(pi x), periodic",
        f"{RAISSI}; the network of Urban, Stefanou and Pons (2025), Unveiling the optimization process of Physics "
        "Informed Neural Networks",
    )
    return box_problem(AllenCahn(hard), about, width=width, depth=depth, points=points)


def pinn_kdv(*, width: int = 30, depth: int = 3, points: int = 1_600, hard: bool = False) -> Problem:
    """The equation of Korteweg and de Vries, with a third derivative. Test error against a Fourier series.

    Args:
        width: units of each hidden layer. Default 30, the network of Urban, Stefanou and Pons (2025) for two solitons
            of this equation.
        depth: hidden layers. Default 3, as there.
        points: as in `pinn_burgers`.
        hard: beginning and ends are met by construction: u = cos(pi x) + t times the network, to which x is given as
            cos(pi x) and sin(pi x).

    Raises:
        ValueError: a size or `hard` is none.
    """
    formula = "u_t + u u_x + 0.0025 u_xxx = 0 with u(x, 0) = cos(pi x), periodic"
    about = About("kdv", "Korteweg-de Vries", formula, RAISSI)
    return box_problem(KortewegDeVries(hard), about, width=width, depth=depth, points=points)
