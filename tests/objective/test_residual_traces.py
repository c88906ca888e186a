"""Functions of residuals are traced, whatever kind of callable they are, and a trace follows what they read."""

import functools
from typing import Any

import pytest
import torch
from residual_cases import EXACT, INTERIOR, network, poisson, uniform
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize


class Source:
    """A function of points as an object."""

    def __init__(self):
        self.factor, self.shift = 2.0, uniform(9, seed=4)

    def __call__(self, model: nn.Module, points: Tensor) -> Tensor:
        return self.factor * poisson(model, points) + self.shift

    def method(self, model: nn.Module, points: Tensor) -> Tensor:
        return self(model, points)


def times(model: nn.Module, points: Tensor, factor: float) -> Tensor:
    return factor * poisson(model, points)


def over(factor: float, shift: Tensor) -> Any:
    return lambda model, points: factor * poisson(model, points) + shift


FUNCTIONS = {
    "module-level": lambda: poisson,
    "lambda": lambda: lambda model, points: model(points) - 1,
    "closure": lambda: over(2.0, uniform(9, seed=4)),
    "partial": lambda: functools.partial(times, factor=3.0),
    "object": Source,
    "method": lambda: Source().method,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_every_kind_are_traced(name):
    objective = Objective.from_residuals(network(), {"a": (FUNCTIONS[name](), INTERIOR)})
    curved = linearize(objective, method="traced")
    plain = linearize(objective, method="double_backward")
    v = uniform(curved.space.size, seed=9)
    torch.testing.assert_close(curved.matvec(v), plain.matvec(v), **EXACT)
    torch.testing.assert_close(curved.gradient, plain.gradient, **EXACT)


def test_a_trace_follows_what_a_function_reads():
    source = Source()
    objective = Objective.from_residuals(network(), {"a": (source, INTERIOR)})
    v = uniform(sum(p.numel() for p in objective.model.parameters()), seed=9)

    def agree() -> Tensor:
        curved, plain = (linearize(objective, method=method) for method in ("traced", "double_backward"))
        torch.testing.assert_close(curved.loss, plain.loss, **EXACT)
        torch.testing.assert_close(curved.matvec(v), plain.matvec(v), **EXACT)
        return curved.loss

    seen = [agree()]
    source.factor = 5.0
    seen.append(agree())
    source.shift = uniform(9, seed=8)
    seen.append(agree())
    source.shift.mul_(3)
    seen.append(agree())
    assert len({float(loss) for loss in seen}) == 4
