"""Equations without time whose solution is known: Helmholtz, and Poisson in two, five and ten dimensions."""

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..problem import Problem
from .equation import About, BoxEquation, Unit, box_problem
from .terms import derivative, gradient, variable

DANGEL = (
    "Dangel, Mueller and Zeinhofer (2024), Kronecker-Factored Approximate Curvature for Physics-Informed Neural "
    "Networks, and its program"
)
FREQUENCIES = (1, 4)
"""Of Helmholtz' equation, in x and y."""
WAVE_NUMBER = 1.0


def laplacian(slopes: Tensor, points: Tensor, places: int) -> Tensor:
    """The sum [N, 1] of the second derivatives by the first `places` coordinates, from first derivatives [N, d]."""
    second = [derivative(slopes[:, i : i + 1], points, i) for i in range(places)]
    return torch.cat(second, dim=1).sum(dim=1, keepdim=True)


@dataclasses.dataclass(frozen=True)
class Helmholtz(BoxEquation):
    """u_xx + u_yy + u = q on -1 <= x, y <= 1, where u = sin(pi x) sin(4 pi y) is zero on the boundary."""

    places: ClassVar[int] = 2
    has_time: ClassVar[bool] = False

    def solution(self, points: Tensor) -> Tensor:
        """The exact u [N, 1] at points [N, 2]."""
        return (torch.pi * points * torch.tensor(FREQUENCIES)).sin().prod(dim=1, keepdim=True)

    def source(self, points: Tensor) -> Tensor:
        """The right side q [N, 1] at points [N, 2]."""
        return (WAVE_NUMBER**2 - math.pi**2 * sum(a**2 for a in FREQUENCIES)) * self.solution(points)

    def prescribed(self, points: Tensor) -> Tensor:
        """Zero [N, 1]."""
        return torch.zeros_like(points[:, :1])

    def interior(self, model: nn.Module, points: Tensor) -> Tensor:
        """The equation's left side [N, 1] at points [N, 2]."""
        points = variable(points)
        u = model(points)
        return laplacian(gradient(u, points), points, self.places) + WAVE_NUMBER**2 * u

    def constrained(self, points: Tensor, values: Tensor) -> Tensor:
        """The values times (1 - x^2) (1 - y^2): [N, 1]."""
        x, y = points[:, :1], points[:, 1:]
        return (1 - x.square()) * (1 - y.square()) * values


@dataclasses.dataclass(frozen=True)
class Poisson(BoxEquation):
    """-(u_11 + ... + u_dd) = f on the unit cube."""

    side: ClassVar[Unit] = (0.0, 1.0)
    has_time: ClassVar[bool] = False

    def interior(self, model: nn.Module, points: Tensor) -> Tensor:
        """The equation's left side [N, 1] at points [N, d]."""
        points = variable(points)
        return -laplacian(gradient(model(points), points), points, self.places)


@dataclasses.dataclass(frozen=True)
class Poisson2D(Poisson):
    """u = sin(pi x) sin(pi y), zero on the boundary."""

    places: ClassVar[int] = 2

    def solution(self, points: Tensor) -> Tensor:
        """The exact u [N, 1] at points [N, 2]."""
        return (torch.pi * points).sin().prod(dim=1, keepdim=True)

    def source(self, points: Tensor) -> Tensor:
        """The right side f [N, 1] at points [N, 2]."""
        return 2 * math.pi**2 * self.solution(points)

    def prescribed(self, points: Tensor) -> Tensor:
        """Zero [N, 1]."""
        return torch.zeros_like(points[:, :1])

    def constrained(self, points: Tensor, values: Tensor) -> Tensor:
        """The values times 16 x (1 - x) y (1 - y), which is 1 in the middle: [N, 1]."""
        x, y = points[:, :1], points[:, 1:]
        return 16 * x * (1 - x) * y * (1 - y) * values


@dataclasses.dataclass(frozen=True)
class Poisson5D(Poisson):
    """u = cos(pi x_1) + ... + cos(pi x_5)."""

    places: ClassVar[int] = 5

    def solution(self, points: Tensor) -> Tensor:
        """The exact u [N, 1] at points [N, 5]."""
        return (torch.pi * points).cos().sum(dim=1, keepdim=True)

    def source(self, points: Tensor) -> Tensor:
        """The right side f [N, 1] at points [N, 5]."""
        return math.pi**2 * self.solution(points)


@dataclasses.dataclass(frozen=True)
class Poisson10D(Poisson):
    """u = x_1 x_2 + x_3 x_4 + ... + x_9 x_10, whose second derivatives add up to zero."""

    places: ClassVar[int] = 10

    def solution(self, points: Tensor) -> Tensor:
        """The exact u [N, 1] at points [N, 10]."""
        return (points[:, ::2] * points[:, 1::2]).sum(dim=1, keepdim=True)


def pinn_helmholtz(*, width: int = 24, depth: int = 3, points: int = 1_600, hard: bool = False) -> Problem:
    """Helmholtz' equation with a solution that oscillates four times as fast in y as in x.

    Args:
        width: units of each hidden layer. Default 24, so that a direct solve takes part of a second on one core;
            published: 30, to which sines and cosines of x and y are given.
        depth: hidden layers. Default 3; published: 4, with 2,971 parameters.
        points: of the interior; an eighth of them on the boundary. Default 1,600.
        hard: the boundary is met by construction: u = (1 - x^2) (1 - y^2) times the network.

    Raises:
        ValueError: a size or `hard` is none.
    """
    about = About(
        "helmholtz",
        "Helmholtz",
        "u_xx + u_yy + u = q on the square from -1 to 1, whose solution is sin(pi x) sin(4 pi y)",
        "Wang, Teng and Perdikaris (2021), Understanding and mitigating gradient flow pathologies in physics-informed "
        "neural networks",
        "Relative errors published by Jnini et al. (2026, arXiv 2604.05230), 2,971 parameters in float64: 4.2e-4 by "
        "SOAP after 1,038 s, 3.6e-9 by self-scaled Broyden after 319 s, 4.2e-9 by a dense natural gradient after "
        "251 s, 2.0e-9 by SPRING after 540 s.",
    )
    return box_problem(Helmholtz(hard), about, width=width, depth=depth, points=points)


def pinn_poisson2d(*, width: int = 32, depth: int = 2, points: int = 960, hard: bool = False) -> Problem:
    """Poisson's equation on the unit square.

    Args:
        width: units of each hidden layer. Default 32, for a direct solve on one core; published: 64, 64, 48, 48.
        depth: hidden layers. Default 2; published: 4, with 9,873 parameters.
        points: of the interior; an eighth of them on the boundary. Default 960; published: 900 and 120.
        hard: the boundary is met by construction: u = 16 x (1 - x) y (1 - y) times the network.

    Raises:
        ValueError: a size or `hard` is none.
    """
    about = About(
        "poisson2d",
        "Poisson, 2D",
        "-u_xx - u_yy = f on the unit square, whose solution is sin(pi x) sin(pi y)",
        DANGEL,
        "Errors published by Dangel et al. (2024), 1,000 s with 9,873 parameters in float64: 2e-4 by Adam, 3e-4 by "
        "L-BFGS, 9.5e-5 by a dense natural gradient, 1.3e-6 by Hessian-free, 7.9e-7 by K-FAC.",
    )
    return box_problem(Poisson2D(hard), about, width=width, depth=depth, points=points)


def pinn_poisson5d(*, width: int = 32, depth: int = 2, points: int = 1_600) -> Problem:
    """Poisson's equation on the unit cube of five dimensions.

    Args:
        width: units of each hidden layer. Default 32, for a direct solve on one core; published: 64 (449 parameters
            with `depth=1`), and 64, 64, 48, 48.
        depth: hidden layers. Default 2; published: 1, and 4 with 10,065 parameters.
        points: of the interior; an eighth of them on the boundary. Default 1,600; published: 3,000 and 500.

    Raises:
        ValueError: a size is none.
    """
    about = About(
        "poisson5d",
        "Poisson, 5D",
        "-u_11 - ... - u_55 = f on the unit cube, whose solution is cos(pi x_1) + ... + cos(pi x_5)",
        DANGEL,
        "Errors published by Dangel et al. (2024) and Guzman-Cordero et al. (2025), 1,000 s with 10,065 parameters in "
        "float64: 1e-2 by Adam, 6e-3 by a dense natural gradient, 2.5e-4 by Hessian-free, 3.0e-6 by SPRING, 1.4e-6 by "
        "the dual natural gradient; 3,000 s with 449 parameters: 1.1e-3 by Adam, 9e-4 by L-BFGS, 6e-6 by Hessian-free, "
        "2.6e-6 by K-FAC, 5.6e-8 by the dense natural gradient. By the authors of DSGNAR (2026, arXiv 2607.02194), on "
        "an H100: 3e-16 after 407 s.",
    )
    return box_problem(Poisson5D(), about, width=width, depth=depth, points=points)


def pinn_poisson10d(*, width: int = 32, depth: int = 2, points: int = 960) -> Problem:
    """Laplace's equation on the unit cube of ten dimensions, with prescribed boundary values.

    Args:
        width: units of each hidden layer. Default 32, for a direct solve on one core; published: 256, 256, 128, 128.
        depth: hidden layers. Default 2; published: 4, with 118,000 parameters.
        points: of the interior; an eighth of them on the boundary. Default 960.

    Raises:
        ValueError: a size is none.
    """
    about = About(
        "poisson10d",
        "Poisson, 10D",
        "-u_11 - ... - u_10,10 = 0 on the unit cube, whose solution is x_1 x_2 + x_3 x_4 + ... + x_9 x_10",
        DANGEL,
        "Errors published by Dangel et al. (2024) and Guzman-Cordero et al. (2025), 7,000 s with 118,000 parameters in "
        "float64: 1.5e-3 by Adam, 6.9e-4 by L-BFGS, 4.7e-5 by K-FAC, 3.1e-5 by the dual natural gradient, 2.2e-5 by "
        "Hessian-free, 1.2e-5 by SPRING.",
    )
    return box_problem(Poisson10D(), about, width=width, depth=depth, points=points)
