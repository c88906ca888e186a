"""Ways through a model to what its code reads: no use of a trace is older than it."""

import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from reach_checks import data, never_stale
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latephase import Objective

NUMBER: Any = 1.0
METHOD = attrgetter("_read")


@pytest.fixture
def change(monkeypatch) -> Callable[[float], None]:
    return lambda value: monkeypatch.setitem(globals(), "NUMBER", np.float32(value))


class Dynamic(nn.Module):
    """Asks for its methods by names that it puts together."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "_re" + "ad")(self.linear(x))

    def _read(self, h: Tensor) -> Tensor:
        return h * NUMBER


class ByConstant(Dynamic):
    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "_read")(self.linear(x))  # noqa: B009


class ByGetter(Dynamic):
    def forward(self, x: Tensor) -> Tensor:
        return METHOD(self)(self.linear(x))


class Statics(nn.Module):
    beta = 1.0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    @staticmethod
    def _one(h: Tensor) -> Tensor:
        return h * NUMBER

    @classmethod
    def _two(cls, h: Tensor) -> Tensor:
        return cls._one(h)

    @property
    def two(self) -> Callable[[Tensor], Tensor]:
        return self._two

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.linear(x))


class Times(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * NUMBER


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(lambda module, args, output: output * NUMBER)
    return model


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3))
    parametrize.register_parametrization(model[0], "weight", Times())
    return model


def forward_of_its_own() -> nn.Module:
    model = nn.Linear(4, 3)
    model.forward = lambda x: nn.functional.linear(x, model.weight, model.bias) * NUMBER
    return model


@pytest.mark.parametrize("build", [Dynamic, ByConstant, ByGetter, Statics, hooked, parametrized, forward_of_its_own])
def test_ways_through_a_model(build, change):
    never_stale(Objective(build().double(), nn.MSELoss(), data()), change)


REPLACED = {
    "forward": (nn.Tanh, "forward", lambda value: lambda self, h: torch.tanh(value * h)),
    "another method": (
        nn.Conv1d,
        "_conv_forward",
        lambda value: lambda self, x, w, b: value * nn.functional.conv1d(x, w, b),
    ),
    "function": (nn.functional, "relu", lambda value: lambda h, inplace=False: value * h.clamp(min=0)),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_layer_of_torchs_that_was_replaced(name, monkeypatch):
    owner, attribute, build = REPLACED[name]
    layers = [nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 1, 1), nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.ReLU()]
    model = nn.Sequential(*layers).double()

    def change(value: float) -> None:
        if value != 1.0:
            monkeypatch.setattr(owner, attribute, build(value))

    never_stale(Objective(model, nn.MSELoss(), data()), change)


def test_hooks_of_all_modules():
    handles = []

    def change(value: float) -> None:
        for handle in handles:
            handle.remove()
        handles.clear()
        if value != 1.0:
            handles.append(nn.modules.module.register_module_forward_hook(lambda m, a, output: output * value))

    try:
        never_stale(Objective(nn.Linear(4, 3).double(), nn.MSELoss(), data()), change)
    finally:
        change(1.0)


def test_an_attribute_of_a_scripted_module():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.beta = nn.Linear(4, 3), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.beta

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(Scripted().double())
    never_stale(Objective(model, nn.MSELoss(), data()), lambda value: setattr(model, "beta", value))


def test_the_settings_of_torch(change):
    class Fresh(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * torch.ones(()).dtype.itemsize

    before = torch.get_default_dtype()
    try:
        never_stale(
            Objective(Fresh().double(), nn.MSELoss(), data()),
            lambda value: torch.set_default_dtype(torch.float32 if value == 1.0 else torch.float64),
        )
    finally:
        torch.set_default_dtype(before)
