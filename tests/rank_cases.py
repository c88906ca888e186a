"""Models, shares of data and optimizers that tests with several ranks have in common."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latephase import (
    CG,
    KFAC,
    SGDQLR,
    AdamQLR,
    Blocks,
    Direct,
    GaussNewton,
    HessianFree,
    Objective,
    SelfScaledBroyden,
    layerwise,
)

ROWS = 16
SHARES = {
    2: (slice(0, 16), slice(16, 16)),
    3: (slice(0, 5), slice(5, 5), slice(5, 16)),
    5: (slice(0, 2), slice(2, 7), slice(7, 9), slice(9, 9), slice(9, 16)),
}
"""Unequal, and one rank has none."""
EVEN = {2: (slice(0, 5), slice(5, 16))}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "hessian_free": lambda model: HessianFree(model.parameters(), solver=CG(max_iter=6), damping=0.1),
    "blocks": lambda model: HessianFree(layerwise(model), blocks=Blocks(), solver=CG(max_iter=6), damping=0.1),
    "hessian": lambda model: HessianFree(model.parameters(), curvature="hessian", solver=CG(max_iter=6)),
    "nystrom": lambda model: HessianFree(model.parameters(), solver=CG(max_iter=4, preconditioner="nystrom")),
    "gauss_newton": lambda model: GaussNewton(model.parameters(), damping=0.1),
    "primal": lambda model: GaussNewton(model.parameters(), solver=Direct(side="primal"), damping=0.1),
    "spring": lambda model: GaussNewton(model.parameters(), momentum=0.5, damping=0.1),
    "kfac": lambda model: KFAC(model.parameters(), adapt_period=2),
    "sgd_qlr": lambda model: SGDQLR(model.parameters()),
    "adam_qlr": lambda model: AdamQLR(model.parameters()),
    "broyden": lambda model: SelfScaledBroyden(model.parameters()),
}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def data(rows: slice = slice(0, ROWS)) -> tuple[Tensor, Tensor]:
    """One output and squared errors: K-FAC's random signs, which differ between ranks, square to one."""
    x = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x[rows], (x[:, :1].sin() + x[:, 1:2])[rows]


def objective_of(model: nn.Module, rows: slice, group: dist.ProcessGroup | None, **options: Any) -> Objective:
    """An L2 term keeps the problem strictly convex near its minimum, so that rounding does not grow over the steps."""
    return Objective(model, nn.MSELoss(), data(rows), weight_decay=0.05, process_group=group, **options)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def trained(name: str, rows: slice, group: dist.ProcessGroup | None, wrapped: bool, steps: int) -> Tensor:
    """The parameters after each step, [steps, P]."""
    model, found = network(), []
    optimizer = OPTIMIZERS[name](model)
    whole = DistributedDataParallel(model) if wrapped else model
    torch.manual_seed(3)
    for _ in range(steps):
        optimizer.step(objective_of(whole, rows, None if wrapped else group))
        found.append(flat(model))
    return torch.stack(found)
