"""Every change of the model that a trace could miss, against a fresh linearisation without one."""

import copy
import functools
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from product_cases import REALS, VECTORS, normalized, seeded
from torch import nn
from trace_cases import BOTH, Calling, calling, compare, mlp, right, settled, squared

from latephase import Objective
from latephase.curvature import linearize

pytestmark = pytest.mark.usefixtures("same_numbers")


class Slotted:
    __slots__ = ("temperature",)

    def __init__(self, temperature: float):
        self.temperature = temperature


class Extended(dict):
    """A mapping with attributes beside its items."""


def test_train_and_eval():
    model = seeded(normalized).train()
    settled(squared(model))
    model.eval()
    settled(squared(model))
    model.train()
    assert right(squared(model)).method == "traced"
    model[1].eval()  # of one submodule alone
    right(squared(model))


def set_attribute(name: str, value) -> Callable[[Calling], None]:
    return lambda model: setattr(model, name, value)


CHANGES: dict[str, tuple[Callable, dict, Callable[[Calling], None]]] = {
    "float": (lambda self, h: torch.tanh(h * self.t), {"t": 1.0}, set_attribute("t", 3.0)),
    "whole_number": (lambda self, h: torch.tanh(h) ** self.n, {"n": 1}, set_attribute("n", 2)),
    "bool": (lambda self, h: torch.tanh(h) if self.on else torch.sin(h), {"on": True}, set_attribute("on", False)),
    "string": (lambda self, h: getattr(torch, self.mode)(h), {"mode": "tanh"}, set_attribute("mode", "sin")),
    "list": (lambda self, h: h * sum(self.n), {"n": [1.0, 2.0]}, lambda model: model.n.append(4.0)),
    "dict": (lambda self, h: h * self.d["a"], {"d": {"a": 1.0}}, lambda model: model.d.update(a=2.0)),
    "set": (lambda self, h: h * sum(self.n), {"n": {1.0}}, lambda model: model.n.add(5.0)),
    "nested": (
        lambda self, h: h * self.c.inner["scale"],
        {"c": types.SimpleNamespace(inner={"scale": 1.0})},
        lambda model: model.c.inner.update(scale=2.0),
    ),
    "slots": (
        lambda self, h: torch.tanh(h * self.c.temperature),
        {"c": Slotted(1.0)},
        lambda model: setattr(model.c, "temperature", 3.0),
    ),
    "mapping_with_attributes": (
        lambda self, h: torch.tanh(h * getattr(self.c, "t", 1.0)),
        {"c": Extended()},
        lambda model: setattr(model.c, "t", 3.0),
    ),
    "numpy_array": (
        lambda self, h: torch.tanh(h * float(self.n[0])),
        {"n": np.array([1.0])},
        lambda model: model.n.fill(3.0),
    ),
    "numpy_number": (lambda self, h: h * float(self.n), {"n": np.float32(1.0)}, set_attribute("n", np.float32(2.0))),
    "function": (lambda self, h: self.f(h), {"f": torch.tanh}, set_attribute("f", torch.sin)),
    "lambda": (lambda self, h: self.f(h), {"f": lambda h: torch.tanh(h)}, set_attribute("f", lambda h: torch.sin(h))),
    "partial": (
        lambda self, h: self.f(h),
        {"f": functools.partial(torch.mul, other=1.0)},
        set_attribute("f", functools.partial(torch.mul, other=2.0)),
    ),
    "tensor_in_place": (
        lambda self, h: torch.tanh(h * self.t),
        {"t": torch.ones(4, dtype=torch.float64)},
        lambda model: model.t.mul_(3.0),
    ),
    "tensor_rebound": (
        lambda self, h: torch.tanh(h * self.t),
        {"t": torch.ones(4, dtype=torch.float64)},
        lambda model: setattr(model, "t", model.t * 3.0),
    ),
    "tensor_of_another_shape": (
        lambda self, h: torch.tanh(h * self.t),
        {"t": torch.ones(4, dtype=torch.float64)},
        set_attribute("t", torch.tensor(2.0, dtype=torch.float64)),
    ),
    "tensors_in_a_list": (
        lambda self, h: torch.tanh(h * self.t[0] + self.t[1]),
        {"t": [torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)]},
        lambda model: model.t.reverse(),
    ),
    "of_a_submodule": (
        lambda self, h: self.act(h),
        {"act": nn.LeakyReLU(0.1)},
        lambda model: setattr(model.act, "negative_slope", 0.5),
    ),
    "hook": (
        lambda self, h: torch.tanh(h),
        {},
        lambda model: model.first.register_forward_hook(lambda module, args, output: 2.0 * output),
    ),
    "forward_of_an_instance": (
        lambda self, h: torch.tanh(h),
        {},
        lambda model: setattr(model.first, "forward", lambda x: 2.0 * x),
    ),
    "submodule": (lambda self, h: self.act(h), {"act": nn.Tanh()}, lambda model: setattr(model, "act", nn.Sigmoid())),
    "order_of_submodules": (
        lambda self, h: self.acts(h),
        {"acts": nn.Sequential(nn.Tanh(), nn.ELU())},
        lambda model: setattr(model, "acts", nn.Sequential(nn.ELU(), nn.Tanh())),
    ),
    "forgotten_parameter": (
        lambda self, h: torch.tanh(h),
        {},
        lambda model: model.first.register_parameter("bias", None),
    ),
    "tying": (
        lambda self, h: torch.tanh(self.more(h)),
        {"more": nn.Linear(4, 4)},
        lambda model: setattr(model.more, "weight", model.first.weight),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model(change):
    function, attributes, apply = CHANGES[change]
    model = calling(function, **copy.deepcopy(attributes))
    before = settled(squared(model)).loss
    apply(model)
    after = right(squared(model))
    assert float((after.loss - before).abs()) > 1e-6
    for _ in range(2):
        right(squared(model))


def test_a_submodule_of_the_same_kind_with_other_weights():
    model = mlp()
    settled(squared(model))
    model[2] = seeded(lambda: nn.Linear(5, 3), seed=7)
    assert right(squared(model)).method == "traced"


@BOTH
def test_a_frozen_and_thawed_parameter(curvature):
    model = mlp()
    settled(squared(model), curvature)
    model[0].weight.requires_grad_(False)
    assert right(squared(model), curvature).space.size == 43 - 20
    model[0].weight.requires_grad_(True)
    assert right(squared(model), curvature).method == "traced"


@BOTH
def test_another_subset_of_the_parameters(curvature):
    model = mlp()
    weight, bias, head, _ = model.parameters()
    for parameters in ([weight, bias], [head], [bias, weight], None):
        settled(squared(model), curvature, parameters=parameters)


def test_another_dtype_of_the_model():
    model = mlp()
    settled(squared(model))
    model.float()
    single = Objective(model, nn.MSELoss(), (VECTORS.float(), REALS.float()))
    linearization = linearize(single)
    compare(linearization, linearize(single, method="double_backward"), 1e-5)
    for _ in range(2):
        traced = linearize(single)
        assert traced.method == "traced"
        assert traced.gradient.dtype == torch.float32
        compare(traced, linearize(single, method="double_backward"), 1e-5)
    model.double()
    assert right(squared(model)).method == "traced"
