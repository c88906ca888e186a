"""What `test_fake_device.py` runs in a process of its own: steps on the CPU, and the same on the fake device.

Recurrent layers are missing: on every device but the CPU torch takes fused kernels for them, of which there are none
here.

    python tests/fake_device_cases.py OUT.json PATTERN [PATTERN ...]

Writes, for each case whose name a pattern fits, the largest relative difference of what the two left behind, or the
error.
"""

import fnmatch
import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fake_device
from latephase import (
    CG,
    KFAC,
    RAD,
    AdamQLR,
    Blocks,
    Box,
    Direct,
    GaussNewton,
    HessianFree,
    LatePhase,
    Objective,
    Points,
    SelfScaledBroyden,
    TargetRatio,
    check,
)
from latephase.curvature import linearize
from latephase.solve import stopping

STEPS = 3
PLANTED = "planted"


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Attention(nn.Module):
    """Attention over three tokens, a layer norm and a head, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).mean(1))


def convolutional() -> nn.Module:
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(12, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (6,)),
    "attention": (Attention, (3, 6)),
    "convolutional": (convolutional, (1, 6, 6)),
}


def classifier(device: torch.device, name: str = "perceptron", chunks: int = 2, **options: Any) -> Objective:
    """A model of this name on twelve examples of three classes."""
    make, shape = MODELS[name]
    model, data = make().double(), [(torch.randn(6, *shape).double(), torch.randint(3, (6,))) for _ in range(chunks)]
    moved = [(x.to(device), y.to(device)) for x, y in data]
    return Objective(model.to(device), nn.CrossEntropyLoss(), moved, weight_decay=1e-3, **options)


def equation(model: nn.Module, x: Tensor) -> Tensor:
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (curved,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return curved + torch.sin(3 * x)


def ends(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def residuals(device: torch.device) -> Objective:
    """u'' + sin(3 x) = 0 on the unit interval."""
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double().to(device)
    inside, edge = torch.rand(20, 1).double().to(device), torch.tensor([[0.0], [1.0]]).double().to(device)
    return Objective.from_residuals(
        model, {"equation": (equation, inside), "ends": (ends, edge)}, weights={"ends": 10.0}
    )


def left(objective: Objective) -> list[Tensor]:
    """Parameters and buffers, on the CPU."""
    return [value.detach().cpu() for value in objective.model.state_dict().values()]


def stepped(make: Callable[..., Any], device: torch.device, of: Callable[..., Objective] = classifier) -> list[Tensor]:
    """What some steps of an optimizer leave behind, its state having gone through a state dict on the way."""
    objective = of(device)
    optimizer = make(objective.model.parameters())
    for _ in range(STEPS):
        optimizer.step(objective)
    state = optimizer.state_dict()
    optimizer = make(objective.model.parameters())
    optimizer.load_state_dict(state)
    optimizer.step(objective)
    return left(objective)


def products(device: torch.device, name: str) -> list[Tensor]:
    """The gradient, both kinds of products, and rows where there are any."""
    found = []
    for curvature in ("ggn", "hessian"):
        linear = linearize(classifier(device, name), curvature=curvature)
        vector = torch.linspace(-1, 1, linear.gradient.numel(), dtype=torch.float64).to(device)
        found += [linear.gradient, linear.matvec(vector)]
        if curvature == "ggn" and name != "convolutional":
            found.append(linear.rows())
    return [value.cpu() for value in found]


def drawn(device: torch.device) -> list[Tensor]:
    """Steps on points that are drawn anew, where residuals are large."""
    objective = residuals(device)
    optimizer, points = (
        GaussNewton(objective.model.parameters()),
        Points(objective, {"equation": Box(0.0, 1.0)}, every=1, adaptive=RAD()),
    )
    for _ in range(STEPS):
        optimizer.step(points.next())
    return left(objective)


def handed_over(device: torch.device) -> list[Tensor]:
    """Adam's steps, a race, and the winner's."""
    objective = residuals(device)
    params = list(objective.model.parameters())
    optimizer = LatePhase(params, torch.optim.Adam(params, 1e-2), budget=60, unit="steps")
    for _ in range(60):
        optimizer.step(objective)
    return left(objective)


def checked(device: torch.device) -> list[Tensor]:
    """A check, which finds nothing wrong."""
    report = check(classifier(device))
    if not report.ok:
        raise AssertionError(str(report))
    return []


def planted(device: torch.device) -> list[Tensor]:
    """A step where conjugate gradients forget, in one place, which device a tensor has to be made on."""

    class Forgetful:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def tensor(self, values: Any, dtype: Any = None, device: Any = None) -> Tensor:
            return torch.tensor(values, dtype=dtype)

    with mock.patch.object(stopping, "torch", Forgetful()):
        return stepped(HessianFree, device)


def cases() -> dict[str, Callable[[torch.device], list[Tensor]]]:
    """What is run, by name."""
    makes: dict[str, Callable[..., Any]] = {
        "HessianFree": HessianFree,
        "HessianFree.late_phase": HessianFree.late_phase,
        "HessianFree, Hessian": partial(HessianFree, curvature="hessian"),
        "HessianFree, blocks": partial(HessianFree, blocks=Blocks()),
        "HessianFree, on host": partial(HessianFree, solver=CG(on_host=True)),
        **{
            f"HessianFree, {name}": partial(HessianFree, solver=CG(preconditioner=name))
            for name in ("empirical_fisher", "ggn_diagonal", "nystrom", "kfac")
        },
        "GaussNewton": GaussNewton,
        "GaussNewton, target ratio": partial(GaussNewton, damping=TargetRatio()),
        "GaussNewton, blocks": partial(GaussNewton, blocks=Blocks()),
        "GaussNewton, plain": partial(GaussNewton, solver=Direct(acceleration=0.0)),
        "SPRING": partial(GaussNewton, momentum=0.5, line_search=False),
        "KFAC": KFAC,
        "AdamQLR": AdamQLR,
        "SelfScaledBroyden": SelfScaledBroyden,
    }
    found: dict[str, Callable[[torch.device], list[Tensor]]] = {
        f"step: {name}": partial(stepped, make) for name, make in makes.items()
    }
    for name in MODELS:
        found[f"products: {name}"] = partial(products, name=name)
        found[f"on {name}"] = partial(stepped, HessianFree.late_phase, of=partial(classifier, name=name))
    found["chunks cut"] = partial(stepped, HessianFree, of=partial(classifier, microbatch_size=2))
    for name in ("GaussNewton", "SelfScaledBroyden", "HessianFree", "KFAC"):
        found[f"residuals: {name}"] = partial(stepped, makes[name], of=residuals)
    return {**found, "points": drawn, "late phase": handed_over, "check": checked, PLANTED: planted}


def difference(case: Callable[[torch.device], list[Tensor]], device: torch.device) -> float | str:
    """The largest relative difference between the CPU and the device, or what went wrong there."""
    torch.manual_seed(0)
    wanted = case(torch.device("cpu"))
    torch.manual_seed(0)
    try:
        found = case(device)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return max(
        (
            float((a - b).norm() / (b.norm() + 1e-30))
            for a, b in zip(found, wanted, strict=True)
            if b.is_floating_point()
        ),
        default=0.0,
    )


def main(out: str, *patterns: str) -> None:
    """Run and write."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    device = fake_device.register()
    found: dict[str, float | str] = {}
    for name, case in cases().items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            found[name] = difference(case, device)
            Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
