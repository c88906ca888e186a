"""Functions with which AdamQLR and SGDQLR are held to `qlr_oracle`, each in NumPy and in torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from qlr_oracle import MLP, Array, Batch, CrossEntropy, Function, Jet, Rosenbrock, SquaredError
from torch import Tensor, nn

from latephase import Objective

STEPS = 50
NO_DATA: Batch = (np.zeros((1, 0)), np.zeros((1, 1)))


class Identity:
    """The parameters themselves as one row of outputs."""

    def outputs(self, theta: Array, inputs: Array) -> Array:
        return theta[None]

    def jet(self, theta: Array, d: Array, inputs: Array) -> Jet:
        return theta[None], d[None], np.zeros_like(d)[None]

    def pull_back(self, theta: Array, inputs: Array, slopes: Array) -> Array:
        return slopes[0]


class Barrier:
    """The sum of z - log z, least at z = 1 and not a number for z < 0."""

    def value(self, z: Array, targets: Array) -> Any:
        with np.errstate(invalid="ignore"):
            return (z - np.log(z)).sum()

    def slopes(self, z: Array, targets: Array) -> Array:
        return 1 - 1 / z

    def curvature(self, z: Array, u: Array, targets: Array) -> float:
        return float(((u / z) ** 2).sum())


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """0.5 |z - y|^2 summed over the outputs, mean over the rows."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


class Point(nn.Module):
    """The parameters themselves, as one vector `x`."""

    def __init__(self, size: int):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(size, dtype=torch.float64))


def regression(rng: np.random.Generator, rows: int) -> Batch:
    x = rng.standard_normal((rows, 3))
    y = np.stack([np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2], x[:, 0] * x[:, 1], x[:, 2]], 1)
    return x, y + 0.1 * rng.standard_normal(y.shape)


def classification(rng: np.random.Generator, rows: int) -> Batch:
    x = rng.standard_normal((rows, 3))
    scores = np.stack([x[:, 0], x[:, 1] * x[:, 2], x[:, 2] - x[:, 0]], 1) + 0.5 * rng.standard_normal((rows, 3))
    return x, scores.argmax(1)


@dataclass(frozen=True)
class Case:
    """A function in NumPy, and the same in torch: a model, whose values `start` [P] replaces, and its objectives."""

    function: Function
    start: np.ndarray
    batches: list[Batch]
    model: nn.Module
    objective: Callable[[Batch], Objective]


def mlp_case(sizes, oracle_loss, loss, draw, *, fresh: bool, seed: int) -> Case:
    rng, (i, h, o) = np.random.default_rng(seed), sizes
    weights = [rng.standard_normal(h * i) / i**0.5, np.zeros(h), rng.standard_normal(o * h) / h**0.5, np.zeros(o)]
    batches = [draw(rng, 24) for _ in range(STEPS)] if fresh else [draw(rng, 40)] * STEPS
    first, last = [nn.utils.skip_init(nn.Linear, *size, dtype=torch.float64) for size in ((i, h), (h, o))]
    model = nn.Sequential(first, nn.Tanh(), last)

    def objective(batch: Batch) -> Objective:
        return Objective(model, loss, (torch.tensor(batch[0]), torch.tensor(batch[1])))

    return Case(Function(MLP(sizes), oracle_loss), np.concatenate(weights), batches, model, objective)


def point_case(
    function: Function, start: tuple[float, ...], forward: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Case:
    """Of x -> (loss, outputs), with the parameters x and no data."""
    model = Point(len(start))
    objective = Objective.from_forward(model, lambda: forward(model.x))
    return Case(function, np.array(start), [NO_DATA] * STEPS, model, lambda batch: objective)


def rosenbrock(x: Tensor) -> tuple[Tensor, Tensor]:
    """As least squares."""
    residuals = torch.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])
    return residuals @ residuals, residuals


def rosenbrock_plain(x: Tensor) -> tuple[Tensor, Tensor]:
    """As a function, itself its only output, which makes no difference to the Hessian."""
    f = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    return f, f


def barrier(x: Tensor) -> tuple[Tensor, Tensor]:
    return (x - x.log()).sum(), x


ROSENBROCK = Function(Rosenbrock(), SquaredError("sum"))
CASES = {
    "regression": mlp_case((3, 4, 3), SquaredError("mean"), nn.MSELoss(), regression, fresh=False, seed=0),
    "regression_batches": mlp_case((3, 4, 3), SquaredError("half"), half_squared_error, regression, fresh=True, seed=1),
    "classification": mlp_case((3, 4, 3), CrossEntropy(), nn.CrossEntropyLoss(), classification, fresh=False, seed=2),
    "classification_batches": mlp_case(
        (3, 4, 3), CrossEntropy(), nn.CrossEntropyLoss(), classification, fresh=True, seed=3
    ),
    "rosenbrock": point_case(ROSENBROCK, (1.0, -1.0), rosenbrock),
    "rosenbrock_plain": point_case(ROSENBROCK, (1.0, -1.0), rosenbrock_plain),
    "saddle": point_case(ROSENBROCK, (-0.5, 2.0), rosenbrock_plain),
    "barrier": point_case(Function(Identity(), Barrier()), (3.0, 5.0, 0.5), barrier),
}
