"""One small training of each optimizer and preconditioner, for tests of saved states and of steps that fail."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flat_parts import parts
from latephase import (
    CG,
    GGN,
    KFAC,
    SGDQLR,
    AdamQLR,
    Fixed,
    GaussNewton,
    HessianFree,
    Objective,
    QuadraticLearningRate,
    TargetRatio,
    WithHidden,
    layerwise,
)
from latephase.curvature.preconditioners import EmpiricalFisher, GGNDiagonal, Kronecker, Nystrom

Make = Callable[[nn.Module], torch.optim.Optimizer]


class Hidden(nn.Module):
    """A layer whose pre-activations are handed on, for structural damping."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x)
        return WithHidden(self.last(hidden.tanh()), hidden, "tanh")


def hessian_free(**options: Any) -> Make:
    return lambda model: HessianFree(model.parameters(), **parts(**({"damping": 0.1} | options)))


CASES: dict[str, Make] = {
    "HessianFree": hessian_free(),
    "Hessian": hessian_free(curvature="hessian", fixed=True),
    "blocks": lambda model: HessianFree(layerwise(model), damping=0.1, blocks=True),
    "debias": hessian_free(debias=True),
    "structural damping": hessian_free(curvature=GGN(structural_damping=0.1)),
    "EmpiricalFisher": hessian_free(solver=CG(preconditioner="empirical_fisher")),
    "EmpiricalFisher, kept": hessian_free(solver=CG(preconditioner=EmpiricalFisher(every=5))),
    "GGNDiagonal": hessian_free(solver=CG(preconditioner="ggn_diagonal")),
    "GGNDiagonal, kept": hessian_free(solver=CG(preconditioner=GGNDiagonal(every=5))),
    "Nystrom": hessian_free(solver=CG(preconditioner=Nystrom(rank=3))),
    "Kronecker": hessian_free(solver=CG(preconditioner=Kronecker())),
    "Kronecker over blocks": lambda model: HessianFree(
        layerwise(model), damping=0.1, blocks=True, solver=CG(preconditioner="kfac")
    ),
    "KFAC": lambda model: KFAC(model.parameters(), damping=0.1, adapt_period=1),
    "KFAC with a fixed rate": lambda model: KFAC.unadaptive(model.parameters(), lr=0.1),
    "GaussNewton": lambda model: GaussNewton(model.parameters(), damping=0.1),
    "GaussNewton with momentum": lambda model: GaussNewton(model.parameters(), damping=Fixed(0.1), momentum=0.5),
    "GaussNewton over blocks": lambda model: GaussNewton(layerwise(model), damping=TargetRatio(0.1), blocks=True),
    "SGDQLR": lambda model: SGDQLR(model.parameters()),
    "AdamQLR": lambda model: AdamQLR(model.parameters()),
    "momentum": lambda model: QuadraticLearningRate(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)),
    "AdamW": lambda model: QuadraticLearningRate(torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)),
}


def model_of(case: str, *, norm: bool = False) -> nn.Module:
    """The model of a case, its parameters drawn from seed 0; with batch norm and dropout where asked for.

    Batch norm in training mode has no rows.
    """
    torch.manual_seed(0)
    if case == "structural damping":
        return Hidden().double()
    between = [nn.BatchNorm1d(4), nn.Dropout(0.3)] if norm else []
    model = nn.Sequential(nn.Linear(3, 4), *between, nn.Tanh(), nn.Linear(4, 3)).double()
    if norm and case.startswith("GaussNewton"):
        model[1].eval()
    return model


def batch(seed: int, rows: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, generator=generator, dtype=torch.float64), torch.randint(
        3, (rows,), generator=generator
    )


def objectives_of(case: str, model: nn.Module, seed: int) -> tuple[Objective, ...]:
    """The arguments of step number `seed`."""
    first = Objective(model, nn.CrossEntropyLoss(), batch(seed))
    if isinstance(CASES[case](model), (HessianFree, GaussNewton)):
        return first, Objective(model, nn.CrossEntropyLoss(), batch(seed + 100, 12))
    return (first,)


def take_steps(case: str, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    """Take the steps of these numbers; the parameters after each, as one vector."""
    found = []
    for step in steps:
        optimizer.step(*objectives_of(case, model, step))
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    return found
