"""The table of optimizers that the tests of torch's contract go through: a new optimizer is one line of OPTIMIZERS."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from step_cases import CASES
from torch import Tensor, nn

from latephase import (
    KFAC,
    SGDQLR,
    AdamQLR,
    Direct,
    Fixed,
    GaussNewton,
    HessianFree,
    Objective,
    QuadraticLearningRate,
    SelfScaledBroyden,
)


@dataclass(frozen=True)
class Entry:
    """One optimizer, and what the contract must know of it.

    Attributes:
        make: (params, **options) -> the optimizer.
        proportional: options under which an update is `lr` times what it would be with an `lr` of one.
        momentum: what a schedule that cycles the momentum meets: "none" (there is none, which torch says itself),
            "refused" at the next step, or "cycled".
        saved: its case among the state dicts of an earlier release; None for one that is younger.
        rows: whether it wants a row for each example, and refuses batch norm in training mode.
        option: a global option, a value that it may have other than the default, and what an error says of it.
        warns: what it warns of in dtypes narrower than float64.
    """

    make: Callable[..., Any]
    proportional: Mapping[str, Any] = field(default_factory=dict)
    momentum: str = "none"
    saved: str | None = None
    rows: bool = False
    option: tuple[str, Any, str] = ("damping", 0.5, "damping must be|initial must be")
    warns: str | None = None

    @property
    def damped(self) -> bool:
        """Whether there is a damping, which may be set."""
        return self.option[0] == "damping"

    def begin(self, params: Any, damping: float) -> Any:
        """The optimizer, with a damping to begin with where it has one."""
        return self.make(params, damping=damping) if self.damped else self.make(params)


def over(base: type[torch.optim.Optimizer], **settings: Any) -> Callable[..., QuadraticLearningRate]:
    """Quadratic learning rates over a base with these settings."""
    return lambda params, **options: QuadraticLearningRate(base(params, **settings), **options)


CONSTANT = {"damping": Fixed(1e-3), "lr_clip": 0.1}
OPTIMIZERS = {
    "HessianFree": Entry(HessianFree, {"line_search": False, "damping": Fixed(1.0)}, saved="HessianFree"),
    "late_phase": Entry(HessianFree.late_phase, {"line_search": False, "damping": Fixed(1.0)}),
    "GaussNewton": Entry(GaussNewton, {"damping": Fixed(1.0), "solver": Direct(acceleration=0.0)}, "cycled", rows=True),
    "SPRING": Entry(
        functools.partial(GaussNewton, momentum=0.5),
        {"damping": Fixed(1.0), "solver": Direct(acceleration=0.0)},
        "cycled",
        rows=True,
    ),
    "KFAC": Entry(functools.partial(KFAC, adapt_period=1), {}, "refused", saved="KFAC"),
    "AdamQLR": Entry(AdamQLR, CONSTANT, "cycled", saved="AdamQLR"),
    "SGDQLR": Entry(SGDQLR, CONSTANT, "cycled", saved="SGDQLR"),
    "momentum": Entry(over(torch.optim.SGD, lr=0.1, momentum=0.9), CONSTANT, "cycled", saved="momentum"),
    "SelfScaledBroyden": Entry(
        SelfScaledBroyden,
        {"line_search": False},
        option=("update", "bfgs", "update must be"),
        warns="SelfScaledBroyden on parameters in",
    ),
    "AdamW": Entry(over(torch.optim.AdamW, lr=0.1, amsgrad=True), CONSTANT, "cycled", saved="AdamW"),
}


def those_with(condition: Callable[[Entry], bool]) -> list[Any]:
    """Arguments of a test that runs with each entry for which the condition holds."""
    return [pytest.param(each, id=name, marks=_marks(each)) for name, each in OPTIMIZERS.items() if condition(each)]


def _marks(entry: Entry) -> list[pytest.MarkDecorator]:
    return [] if entry.warns is None else [pytest.mark.filterwarnings(f"ignore:{entry.warns}")]


every_optimizer = pytest.mark.parametrize("entry", those_with(lambda entry: True))
"""Runs a test with each entry of the table."""

assert all(entry.saved in CASES for entry in OPTIMIZERS.values() if entry.saved is not None)


def cross_entropy(model: nn.Module, data: tuple[Tensor, Tensor], **options: Any) -> Objective:
    return Objective(model, nn.CrossEntropyLoss(), data, **options)


def take_steps(model: nn.Module, optimizer: Any, batches: Any, seeds: range) -> list[Any]:
    """Take a step for each seed, of torch's generator and of the batch; loss, parameters and report after each."""
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        loss = optimizer.step(cross_entropy(model, batches(seed)))
        vector = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        found.append((loss, vector, optimizer.report.as_dict() | {"seconds": 0}))
    return found


def alike(first: list[Any], second: list[Any]) -> bool:
    """Whether two runs of steps are the same bit for bit."""
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) and torch.equal(x, y) and str(r) == str(s) for (a, x, r), (b, y, s) in pairs)


def batches_of(toy: Any, dtype: torch.dtype = torch.float64) -> Callable[[int], tuple[Tensor, Tensor]]:
    """A batch of 20 rows by its seed."""
    return functools.partial(toy.batch, 20, dtype=dtype)
