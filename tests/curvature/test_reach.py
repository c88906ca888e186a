"""A trace is never older than what its code reads: globals, namespaces, modules, captures, at any depth."""

import argparse
import functools
import importlib.util
import math
import os
import sys
import types
import warnings
from dataclasses import dataclass

import pytest
import torch
from reach_checks import data, never_stale
from torch import Tensor, nn

from latephase import HessianFree, Objective
from latephase.curvature import linearize
from latephase.curvature.tracing import trust

SCALE = 1.0
TABLE = {"inner": [1.0]}
ARGUMENTS = argparse.Namespace(beta=1.0)
SETTINGS = types.ModuleType("settings_of_a_test")
SETTINGS.beta = 1.0
SETTINGS.inner = types.ModuleType("settings_of_a_test.inner")
SETTINGS.inner.beta = 1.0
sys.modules["settings_of_a_test"] = SETTINGS


@dataclass
class Config:
    beta: float = 1.0

    @property
    def twice(self) -> float:
        return 2 * self.beta * SCALE


class Constants:
    beta = 1.0


CONFIG = Config()


def helper(h: Tensor) -> Tensor:
    return deeper(h)


def deeper(h: Tensor) -> Tensor:
    return h * SCALE


READERS = {
    "global": lambda h: h * SCALE,
    "comprehension": lambda h: sum(h * s for s in [SCALE for _ in range(2)]),
    "helper of a helper": lambda h: helper(h),
    "nested list": lambda h: h * TABLE["inner"][0],
    "namespace": lambda h: h * ARGUMENTS.beta,
    "module": lambda h: h * SETTINGS.beta,
    "module in a module": lambda h: h * SETTINGS.inner.beta,
    "dataclass": lambda h: h * CONFIG.beta,
    "property that reads a global": lambda h: h * CONFIG.twice,
    "class": lambda h: h * Constants.beta,
    "partial": functools.partial(lambda h, scale: h * scale() * SCALE, scale=lambda: 1.0),
    "environment": lambda h: h * float(os.environ["LATEPHASE_TEST_SCALE"]),
    "import inside": lambda h: h * __import__("settings_of_a_test").beta,
}


def change(name: str, patch: pytest.MonkeyPatch, value: float) -> None:
    patch.setitem(globals(), "SCALE", value)
    patch.setitem(TABLE, "inner", [value])
    for thing in (ARGUMENTS, SETTINGS, SETTINGS.inner, CONFIG, Constants):
        patch.setattr(thing, "beta", value)
    patch.setenv("LATEPHASE_TEST_SCALE", str(value))


class ByMethod(nn.Module):
    """Reads in a method that `forward` calls."""

    def __init__(self, name: str):
        super().__init__()
        self.linear, self.name = nn.Linear(4, 3), name

    def forward(self, x: Tensor) -> Tensor:
        return self._read(self.linear(x))

    def _read(self, h: Tensor) -> Tensor:
        return READERS[self.name](h)


def in_the_model(name: str) -> Objective:
    torch.manual_seed(0)
    return Objective(ByMethod(name), nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 3)))


def in_the_loss(name: str) -> Objective:
    torch.manual_seed(0)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return ((READERS[name](z) - y) ** 2).mean()

    return Objective(nn.Linear(4, 3), loss, (torch.randn(5, 4), torch.randn(5, 3)))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("build", [in_the_model, in_the_loss])
def test_no_use_is_stale(build, name, monkeypatch):
    change(name, monkeypatch, 1.0)
    objective = build(name)
    for value in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0, 3.0):  # at the sixth and seventh use of the trace
        change(name, monkeypatch, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            linearization = linearize(objective)
        torch.testing.assert_close(linearization.loss, objective.value())
        gradient = linearize(objective, method="double_backward").gradient
        torch.testing.assert_close(linearization.gradient, gradient)


def test_what_can_be_seen_stays_traced(monkeypatch):
    change("", monkeypatch, 1.0)
    objective = in_the_model("helper of a helper")
    for value in (1.0, 1.0, 1.0, 2.0, 2.0, 2.0):
        change("", monkeypatch, value)
        linearization = linearize(objective)
    assert linearization.method == "traced"


def test_an_annealed_weight_of_the_loss(monkeypatch):
    """A term that grows over training, its weight in a namespace of the program, as scripts have it."""
    torch.manual_seed(0)
    monkeypatch.setattr(ARGUMENTS, "beta", 0.0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    x = torch.randn(20, 4)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return ((z - y) ** 2).mean() + ARGUMENTS.beta * (z**2).mean()

    optimizer = HessianFree(model.parameters())
    for step in range(14):
        monkeypatch.setattr(ARGUMENTS, "beta", 0.0 if step < 10 else 1.0)
        objective = Objective(model, loss, (x, x))
        before = float(objective.value())
        optimizer.step(objective)
        assert optimizer.report.loss == pytest.approx(before, rel=1e-5)


def test_our_own_modules_that_are_let_pass_by_name_exist():
    assert all(importlib.util.find_spec(name) is not None for name in trust._OF_PASSES)


class Meta(type):
    """A class of classes whose module is no name, as some that are written in C."""


Meta.__module__ = property(lambda self: "somewhere")  # pyright: ignore[reportAttributeAccessIssue]


class Odd(metaclass=Meta):
    beta = 2.0


def test_a_class_of_classes_whose_module_is_no_name_is_described():
    model = nn.Linear(3, 2)
    model.odd = Odd()
    objective = Objective(model, nn.MSELoss(), (torch.ones(4, 3), torch.zeros(4, 2)))
    direction = torch.ones(8)
    products = [linearize(objective).matvec(direction) for _ in range(3)]
    torch.testing.assert_close(products[0], products[2])


ACT, tanh, functions, TENSOR = torch.tanh, torch.tanh, torch.nn.functional, nn.Tanh


@pytest.mark.parametrize("name", ["ACT", "tanh", "functions", "TENSOR", "capture"])
def test_a_function_of_torch_in_the_place_of_another(name):
    held = torch.tanh

    def change(value: float) -> None:
        nonlocal held
        global ACT, tanh, functions, TENSOR
        if value == 3:
            held = ACT = tanh = torch.sin
            functions, TENSOR = math, nn.ReLU
        else:
            held = ACT = tanh = torch.tanh
            functions, TENSOR = torch.nn.functional, nn.Tanh

    uses = {
        "ACT": lambda h: ACT(h),
        "tanh": lambda h: tanh(h),
        "functions": lambda h: h * (2 if hasattr(functions, "pi") else 1),
        "TENSOR": lambda h: TENSOR()(h),
        "capture": lambda h: held(h),
    }
    inputs, targets = data()
    objective = Objective(nn.Linear(4, 3).double(), lambda z, y: ((uses[name](z) - y) ** 2).mean(), (inputs, targets))
    try:
        never_stale(objective, change)
    finally:
        change(1)
