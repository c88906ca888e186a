"""Every change of the loss that a trace could miss, and what no key can see."""

import functools
import warnings
from collections.abc import Callable

import pytest
import torch
from product_cases import CLASS_WEIGHTS, CLASSES, REALS, VECTORS, randn, seeded
from torch import Tensor, nn
from trace_cases import compare, mlp, right, settled, squared

from latephase import Objective
from latephase.curvature import linearize

pytestmark = pytest.mark.usefixtures("same_numbers")


# ---------------------------------------------------------------------------------------------------------------------
# The loss changes


def test_class_weights():
    model, weight = mlp(), CLASS_WEIGHTS.clone()
    loss = nn.CrossEntropyLoss(weight=weight)
    settled(Objective(model, loss, (VECTORS, CLASSES)))
    weight.mul_(torch.tensor([3.0, 1.0, 0.5]))
    right(Objective(model, loss, (VECTORS, CLASSES)))
    loss.weight = CLASS_WEIGHTS.flip(0)
    right(Objective(model, loss, (VECTORS, CLASSES)))
    right(Objective(model, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS**2), (VECTORS, CLASSES)))
    right(Objective(model, nn.CrossEntropyLoss(), (VECTORS, CLASSES)))


@pytest.mark.parametrize("setting", [{"label_smoothing": 0.2}, {"ignore_index": 1}, {"reduction": "sum"}])
def test_settings_of_a_loss(setting):
    model, loss = mlp(), nn.CrossEntropyLoss()
    settled(Objective(model, loss, (VECTORS, CLASSES)))
    for name, value in setting.items():
        setattr(loss, name, value)
    right(Objective(model, loss, (VECTORS, CLASSES)))


def test_another_kind_of_loss():
    model = mlp()
    for loss in (nn.MSELoss(), nn.SmoothL1Loss(), nn.functional.mse_loss, nn.functional.smooth_l1_loss):
        settled(Objective(model, loss, (VECTORS, REALS)))


def power(exponent: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: (z - y).abs().pow(exponent).mean()


def test_closures_that_captured_another_number():
    model = mlp()
    settled(Objective(model, power(2.0), (VECTORS, REALS)))
    right(Objective(model, power(4.0), (VECTORS, REALS)))
    assert right(Objective(model, power(2.0), (VECTORS, REALS))).method == "traced"


def test_a_closure_whose_captured_number_changes():
    exponent = 2.0
    objective = Objective(mlp(), lambda z, y: (z - y).abs().pow(exponent).mean(), (VECTORS, REALS))
    settled(objective)
    exponent = 3.0
    right(objective)


def test_a_closure_made_anew_at_every_step():
    # It captures the batch that it is for, instead of taking its targets.
    model = mlp()
    for step in range(6):
        batch = randn(11, 3, seed=50 + step)
        linearization = right(Objective(model, lambda z, y, batch=batch: (z - batch).pow(2).mean(), (VECTORS, REALS)))
        assert (linearization.method == "traced") == (step > 0)
    for step in range(6):
        batch = randn(11, 3, seed=60 + step)
        right(Objective(model, lambda z, y: (z - batch).pow(4).mean(), (VECTORS, REALS)))  # noqa: B023


def test_partials():
    model = mlp()
    weighted = functools.partial(nn.functional.cross_entropy, weight=CLASS_WEIGHTS)
    settled(Objective(model, weighted, (VECTORS, CLASSES)))
    for keywords in ({"weight": CLASS_WEIGHTS.flip(0)}, {"label_smoothing": 0.3}, {"reduction": "sum"}):
        right(Objective(model, functools.partial(nn.functional.cross_entropy, **keywords), (VECTORS, CLASSES)))


def test_attributes_of_a_callable_and_of_a_method():
    class Weighted:
        def __init__(self, scale: float):
            self.scale = scale

        def __call__(self, z: Tensor, y: Tensor) -> Tensor:
            return self.scale * (z - y).pow(2).mean()

    for take in (lambda loss: loss, lambda loss: loss.__call__):
        model, loss = mlp(), Weighted(1.0)
        settled(Objective(model, take(loss), (VECTORS, REALS)))
        loss.scale = 2.0
        right(Objective(model, take(loss), (VECTORS, REALS)))


def test_a_loss_that_reaches_into_the_model():
    # An L2 term written by hand: through the module it follows the parameters, whatever their values.
    model = mlp()
    objective = Objective(model, lambda z, y: (z - y).pow(2).mean() + model[0].weight.pow(2).sum(), (VECTORS, REALS))
    settled(objective)
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    right(objective)


def test_a_loss_that_captured_a_parameter():
    model = mlp()
    weight = model[0].weight
    objective = Objective(model, lambda z, y: (z - y).pow(2).mean() * weight.pow(2).sum(), (VECTORS, REALS))
    for _ in range(3):
        right(objective)
    with torch.no_grad():
        weight.mul_(2.0)
    right(objective)


def test_another_forward_function():
    model = mlp()
    for factor in (1.0, 2.0, 1.0):
        objective = squared(model, forward=lambda model, inputs, factor=factor: factor * model(inputs))
        for _ in range(3):
            right(objective)


# ---------------------------------------------------------------------------------------------------------------------
# What no signature can see


class OfTheClass(nn.Module):
    scale = 1.0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.linear(inputs) * self.scale)


def test_an_attribute_of_the_class_is_found_out(monkeypatch):
    objective = squared(seeded(OfTheClass))
    settled(objective)  # two uses
    monkeypatch.setattr(OfTheClass, "scale", 3.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            linearization = linearize(objective)
    assert caught or linearization.method == "traced"
    compare(linearization, linearize(objective, method="double_backward"))
