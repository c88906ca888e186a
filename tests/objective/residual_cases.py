"""A differential equation on a small network, its terms as users write them, and dense matrices to compare with."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from latephase import Objective

EXACT = {"rtol": 1e-12, "atol": 1e-12}
"""Sums of some dozen float64 terms in another order; entries are of order one to a thousand."""
WEIGHTS = {"interior": 0.7, "boundary": 100.0}


def network(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return net


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def poisson(model: nn.Module, points: Tensor) -> Tensor:
    """Laplacian and source [N], as most users write it."""
    points.requires_grad_()
    (slopes,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
    second = [torch.autograd.grad(slopes[:, i].sum(), points, create_graph=True)[0][:, i] for i in range(2)]
    return second[0] + second[1] + 2 * math.pi**2 * torch.sin(math.pi * points).prod(1)


def poisson_by_transforms(model: nn.Module, points: Tensor) -> Tensor:
    """The same [N, 1] by `torch.func`."""

    def u(x: Tensor) -> Tensor:
        return model(x.unsqueeze(0)).squeeze()

    second = vmap(jacrev(jacrev(u)))(points).diagonal(dim1=1, dim2=2).sum(1)
    return (second + 2 * math.pi**2 * torch.sin(math.pi * points).prod(1)).unsqueeze(1)


def edge(model: nn.Module, points: tuple[Tensor, Tensor]) -> Tensor:
    """Two residuals [N, 2] at points with a value each."""
    x, values = points
    u = model(x)
    return torch.cat([u - values, u * u - 0.1], dim=1)


def edge_of_dict(model: nn.Module, points: Mapping[str, Tensor]) -> Tensor:
    """The same, of a dict."""
    return edge(model, (points["x"], points["values"]))


INTERIOR = uniform(9, 2, seed=1)
EDGE = (uniform(4, 2, seed=2), uniform(4, 1, seed=3))


def terms_of(form: str = "autograd") -> dict[str, tuple[Callable[..., Tensor], Any]]:
    if form == "autograd":
        return {"interior": (poisson, INTERIOR), "boundary": (edge, EDGE)}
    boundary = {"x": EDGE[0], "values": EDGE[1]}
    return {"interior": (poisson_by_transforms, INTERIOR), "boundary": (edge_of_dict, boundary)}


def objective_of(form: str = "autograd", model: nn.Module | None = None, **options: Any) -> Objective:
    return Objective.from_residuals(model or network(), terms_of(form), **{"weights": WEIGHTS, **options})


@dataclass
class Dense:
    """Everything in the open, of all trainable parameters in order."""

    loss: Tensor
    gradient: Tensor
    rows: Tensor
    hessian: Tensor

    @property
    def ggn(self) -> Tensor:
        return self.rows.mT @ self.rows


def dense(
    model: nn.Module, weights: Mapping[str, float], interior: Tensor = INTERIOR, edges: tuple[Tensor, Tensor] = EDGE
) -> Dense:
    """By derivatives of one function of the flat parameters, without the package."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    start = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def residuals(point: dict[str, Tensor]) -> Tensor:
        def net(x: Tensor) -> Tensor:
            return functional_call(model, point, (x,))

        def laplacian(x: Tensor) -> Tensor:
            return torch.trace(jacrev(jacrev(lambda y: net(y.unsqueeze(0)).squeeze()))(x))

        source = 2 * math.pi**2 * torch.sin(math.pi * interior[:, 0]) * torch.sin(math.pi * interior[:, 1])
        inside = (vmap(laplacian)(interior) + source) * (weights["interior"] / len(interior)) ** 0.5
        u = net(edges[0])
        outside = torch.cat([u - edges[1], u.square() - 0.1], dim=1) * (weights["boundary"] / len(u)) ** 0.5
        return torch.cat([inside, outside.flatten()])

    def loss(point: dict[str, Tensor]) -> Tensor:
        return residuals(point).square().sum()

    def flat(tree: Mapping[str, Tensor]) -> Tensor:
        return torch.cat(
            [tree[name].reshape(*tree[name].shape[: tree[name].dim() - start[name].dim()], -1) for name in names], -1
        )

    jacobian = flat(jacrev(residuals)(start))
    second = jacrev(jacrev(loss))(start)
    whole = torch.cat([
        torch.cat([second[row][col].reshape(start[row].numel(), -1) for col in names], 1) for row in names
    ])  # fmt: skip
    return Dense(loss(start), flat(jacrev(loss)(start)), 2**0.5 * jacobian, whole)
