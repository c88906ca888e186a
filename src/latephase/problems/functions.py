"""Two functions that are known in closed form: Rosenbrock's valley, and DeepOBS's noisy quadratic."""

import functools
import math

import numpy as np
import torch
from torch import Tensor, nn

from .problem import Problem, Splits, TrainingSetting

DIMENSION = 100
"""Parameters of the noisy quadratic."""
FLAT_DIRECTIONS = 90
"""Of these, how many have an eigenvalue from (0, 1); the others have one from (30, 60)."""


class Rosenbrock(nn.Module):
    """The residuals of Rosenbrock's function, whose sum of squares is (a - x)^2 + b (y - x^2)^2.

    The only parameter is the point (x, y), which starts at (1, -1). The minimum is at (a, a^2), at the end of a curved
    valley.

    Args:
        a: where the valley's lowest point is.
        b: how steep the valley's sides are; at least 0.
    """

    def __init__(self, a: float = 1.0, b: float = 100.0):
        super().__init__()
        self.a = a
        self.root = math.sqrt(b)
        self.point = nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, rows: Tensor) -> Tensor:
        """The two residuals for each of the rows, whose values do not matter: [N, ...] -> [N, 2]."""
        x, y = self.point.unbind()
        return torch.stack([self.a - x, self.root * (y - x * x)]).expand(len(rows), 2)


def load_rosenbrock() -> Splits:
    """One row for each split, since the function has no data: inputs [1, 1] and targets [1, 2], all zero."""
    row = (torch.zeros(1, 1), torch.zeros(1, 2))
    return Splits(train=row, valid=row, test=row)


def rosenbrock(*, a: float = 1.0, b: float = 100.0) -> Problem:
    """Rosenbrock's function (1960) from (1, -1), the first experiment of Clarke and Hernandez-Lobato (2024).

    The loss is the function itself, written as a sum of squares, so that the Gauss-Newton matrix is twice J'J of the
    two residuals. It has full rank everywhere; the Hessian is indefinite where y > x^2 + 1 / (2 b).

    Args:
        a: where the valley's lowest point is. Default 1, as in the paper.
        b: how steep the valley's sides are. Default 100, as in the paper.
    """
    return Problem(
        name="rosenbrock",
        version=1,
        title="Rosenbrock's function",
        description=(
            f"The function ({a:g} - x)^2 + {b:g} (y - x^2)^2 of two parameters from (1, -1), as a sum of squares; no "
            "data, and all splits are the same."
        ),
        model=functools.partial(Rosenbrock, a, b),
        loss=nn.MSELoss(reduction="sum"),
        load=load_rosenbrock,
        # "SGD minimal" of the paper's comparison: a constant learning rate of 1e-3, here for 200 steps.
        training=TrainingSetting(lr=1e-3, batch_size=None, epochs=200),
        source=(
            "Rosenbrock (1960), An automatic method for finding the greatest or least value of a function; start and "
            "number of steps as in Clarke and Hernandez-Lobato (2024), Studying K-FAC Heuristics by Viewing Adam "
            "through a Second-Order Lens"
        ),
        metrics=(),
    )


class NoisyQuadratic(nn.Module):
    """A quadratic as least squares: outputs A (theta - x) for each row x of the data.

    With A'A = dim / 2 * Q, the mean squared error of the outputs [N, dim] against zero is the mean over the rows of
    0.5 (theta - x)'Q(theta - x). Theta starts at ones.

    Args:
        root: A, [dim, dim].
    """

    root: Tensor

    def __init__(self, root: Tensor):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(root.shape[1]))
        self.register_buffer("root", root)

    def forward(self, rows: Tensor) -> Tensor:
        """A (theta - x) for each row x: [N, dim] -> [N, dim]."""
        return (self.theta - rows) @ self.root.T


def curvature_factors() -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [100] and rotation R [100, 100] of the noisy quadratic, whose matrix is Q = R' diag(eigenvalues) R.

    One stream, numpy's `RandomState(42)`, gives 90 eigenvalues from (0, 1), 10 from (30, 60), and then the rotation.
    This is the order of DeepOBS, so that the matrix is the same to rounding. The rotation is uniform over all rotations
    by the subgroup algorithm of Diaconis and Shahshahani (1987): from one of the plane, each further dimension adds a
    reflection that takes the first axis to a random direction.
    """
    random = np.random.RandomState(42)
    flat = random.uniform(0.0, 1.0, FLAT_DIRECTIONS)
    steep = random.uniform(30.0, 60.0, DIMENSION - FLAT_DIRECTIONS)
    angle = 2 * np.pi * random.uniform()
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for size in range(3, DIMENSION + 1):
        direction = random.normal(size=size)
        normal = -direction / np.linalg.norm(direction)
        normal[0] += 1.0
        normal /= np.linalg.norm(normal)
        larger = np.zeros((size, size))
        larger[0, 0] = 1.0
        larger[1:, 1:] = rotation
        rotation = larger - 2 * np.outer(normal, normal @ larger)
    return np.concatenate([flat, steep]), -rotation


def build_noisy_quadratic() -> NoisyQuadratic:
    """The model of `quadratic_deep`, 100 parameters."""
    eigenvalues, rotation = curvature_factors()
    root = np.sqrt(DIMENSION / 2 * eigenvalues)[:, None] * rotation
    return NoisyQuadratic(torch.from_numpy(root).to(torch.get_default_dtype()))


def load_noisy_rows() -> Splits:
    """1,000 rows from N(0, 0.6^2 I) for each split: inputs float32 [1000, 100], targets zeros of that shape.

    The seeds of the streams are DeepOBS's: 42 for training, 44 for validation, 43 for the test split.
    """

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(np.random.RandomState(seed).normal(0.0, 0.6, (1000, DIMENSION))).to(torch.float32)
        return rows, torch.zeros_like(rows)

    return Splits(train=draw(42), valid=draw(44), test=draw(43))


def quadratic_deep() -> Problem:
    """DeepOBS's noisy quadratic in 100 dimensions, with a spectrum as those of deep networks.

    The minimum over any rows is their mean, so that every step of an optimizer can be checked against the solution, and
    one exact Newton step ends there.

    The learning rate is the one that a random search found best in "Descending through a Crowded Valley" (plain SGD,
    large budget, constant; its published results `results_main/large_budget/none/quadratic_deep`); rates from 2/60 on
    diverge.
    """
    return Problem(
        name="quadratic_deep",
        version=1,
        title="Noisy quadratic",
        description=(
            "The mean of 0.5 (theta - x)'Q(theta - x) over 1,000 rows x from N(0, 0.36 I), in 100 dimensions; 90 "
            "eigenvalues of Q are from (0, 1) and 10 from (30, 60)."
        ),
        model=build_noisy_quadratic,
        loss=nn.MSELoss(),
        load=load_noisy_rows,
        training=TrainingSetting(lr=1.5375920235e-2, batch_size=128, epochs=100),
        source=(
            "Schneider, Balles and Hennig (2019), DeepOBS: A Deep Learning Optimizer Benchmark Suite, problem P1, as "
            "in its program; learning rate: Schmidt, Schneider and Hennig (2021), Descending through a Crowded Valley"
        ),
        metrics=(),
    )
