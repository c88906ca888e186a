"""The heat equation in one and in four places."""

import dataclasses
import math
from typing import ClassVar

from torch import Tensor, nn

from ..problem import Problem
from .elliptic import DANGEL, laplacian
from .equation import About, BoxEquation, Unit, box_problem
from .terms import gradient, variable

CONDUCTIVITY = 0.25


@dataclasses.dataclass(frozen=True)
class Heat(BoxEquation):
    """u_t = (u_11 + ... + u_dd) / 4 on the unit cube, 0 <= t <= 1."""

    side: ClassVar[Unit] = (0.0, 1.0)

    def interior(self, model: nn.Module, points: Tensor) -> Tensor:
        """The equation's residual [N, 1] at points [N, d + 1]."""
        points = variable(points)
        slopes = gradient(model(points), points)
        return slopes[:, -1:] - CONDUCTIVITY * laplacian(slopes, points, self.places)


@dataclasses.dataclass(frozen=True)
class Heat1D(Heat):
    """u = exp(-pi^2 t / 4) sin(pi x), zero at both ends."""

    def solution(self, points: Tensor) -> Tensor:
        """The exact u [N, 1] at points [N, 2]."""
        x, t = points[:, :1], points[:, 1:]
        return (-CONDUCTIVITY * math.pi**2 * t).exp() * (math.pi * x).sin()


@dataclasses.dataclass(frozen=True)
class Heat4D(Heat):
    """u = exp(-t) (sin(2 x_1) + ... + sin(2 x_4))."""

    places: ClassVar[int] = 4

    def solution(self, points: Tensor) -> Tensor:
        """The exact u [N, 1] at points [N, 5]."""
        return (-points[:, -1:]).exp() * (2 * points[:, :-1]).sin().sum(dim=1, keepdim=True)


def pinn_heat1d(*, width: int = 32, depth: int = 2, points: int = 960) -> Problem:
    """The heat equation in one place, u_t = u_xx / 4, with the exact solution "sin product" of Dangel et al. (2024).

    Args:
        width: units of each hidden layer. Default 32, for a direct solve on one core; published: 256, 256, 128, 128.
        depth: hidden layers. Default 2; published: 4, with 116,000 parameters.
        points: of the interior; an eighth of them on the beginning, and on the ends. Default 960.

    Raises:
        ValueError: a size is none.
    """
    about = About(
        "heat1d",
        "heat, 1+1D",
        "u_t = u_xx / 4 for 0 <= x <= 1, whose solution is exp(-pi^2 t / 4) sin(pi x)",
        DANGEL,
        "Errors published by Dangel et al. (2024), 1,000 s with 116,000 parameters in float64: 2.5e-4 by Adam, 1.2e-4 "
        "by L-BFGS, 2.2e-7 by Hessian-free, 2.0e-8 by K-FAC.",
    )
    return box_problem(Heat1D(), about, width=width, depth=depth, points=points)


def pinn_heat4d(*, width: int = 32, depth: int = 2, points: int = 1_600) -> Problem:
    """The heat equation in four places, u_t = laplacian / 4, with the exact solution "sin sum" of Dangel et al. (2024).

    Args:
        width: units of each hidden layer. Default 32, for a direct solve on one core; published: 256, 256, 128, 128.
        depth: hidden layers. Default 2; published: 4, with 117,000 parameters.
        points: of the interior; an eighth of them on the beginning, and on the faces. Default 1,600; published: 3,000,
            and 500 for conditions.

    Raises:
        ValueError: a size is none.
    """
    about = About(
        "heat4d",
        "heat, 4+1D",
        "u_t = (u_11 + ... + u_44) / 4 on the unit cube, whose solution is exp(-t) (sin 2 x_1 + ... + sin 2 x_4)",
        DANGEL,
        "Errors published by Dangel et al. (2024) and Guzman-Cordero et al. (2025), 3,000 s with 117,000 parameters in "
        "float64: 7.5e-4 by Adam, 6.7e-4 by L-BFGS, 2.0e-5 by Hessian-free, 1.3e-5 by K-FAC, 1.1e-5 by SPRING, 1.0e-5 "
        "by the dual natural gradient.",
    )
    return box_problem(Heat4D(), about, width=width, depth=depth, points=points)
