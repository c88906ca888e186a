"""Small problems and dense oracles for the optimizers; nothing here is the library's but `Objective`."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from latephase import Objective


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
    torch.set_rng_state(generator_state)
    return model


def batch(rows: int = 20, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, generator=generator, dtype=dtype), torch.randint(3, (rows,), generator=generator)


@pytest.fixture
def toy() -> SimpleNamespace:
    """`toy.network(seed, dtype)` with 31 parameters, and `toy.batch(rows, seed, dtype)` for cross-entropy with it."""
    return SimpleNamespace(network=network, batch=batch)


class Dense:
    """Loss, gradient [P], GGN and Hessian [P, P] of the mean cross-entropy, by torch.autograd.functional."""

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor):
        names = [name for name, _ in model.named_parameters()]
        shapes = [p.shape for p in model.parameters()]
        theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

        def outputs(theta: Tensor) -> Tensor:
            parts = zip(theta.split([shape.numel() for shape in shapes]), shapes, strict=True)
            moved = dict(zip(names, [part.view(shape) for part, shape in parts], strict=True))
            return functional_call(model, moved, inputs)

        def loss(theta: Tensor) -> Tensor:
            return F.cross_entropy(outputs(theta), targets)

        z = outputs(theta).detach()
        jacobian = torch.autograd.functional.jacobian(lambda t: outputs(t).reshape(-1), theta)
        inner = torch.autograd.functional.hessian(lambda u: F.cross_entropy(u.view_as(z), targets), z.reshape(-1))
        self.loss = float(loss(theta))
        self.gradient = torch.autograd.functional.jacobian(loss, theta)
        self.ggn = jacobian.T @ inner @ jacobian
        self.hessian = torch.autograd.functional.hessian(loss, theta)


@pytest.fixture
def dense() -> type[Dense]:
    """The dense oracle of a model's mean cross-entropy."""
    return Dense


class Point(nn.Module):
    """The parameters themselves, as one vector `x`."""

    def __init__(self, *values: float, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(values, dtype=dtype))


def function_of(f: Callable[[Tensor], tuple[Tensor, Tensor]], *start: float) -> tuple[Point, Objective]:
    point = Point(*start)
    return point, Objective.from_forward(point, lambda: f(point.x))


@pytest.fixture
def function() -> Callable[..., tuple[Point, Objective]]:
    """(x -> (loss, outputs), *start) -> a module with the parameter `x`, and the function as its objective."""
    return function_of
