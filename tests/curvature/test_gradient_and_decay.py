"""Gradient, value and closure of an objective against autograd, and weight decay in all of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dense_oracle import dense_oracle, relative
from product_cases import CASES, CURVATURES, TIGHT, check_against, oracle
from torch import Tensor

from latephase import Objective
from latephase.curvature import linearize

# ---------------------------------------------------------------------------------------------------------------------
# Gradient, value and closure


@pytest.mark.parametrize("name", ["cross_entropy_smoothing_weights", "convolution", "tied", "squared_error_sum"])
@pytest.mark.parametrize("chunked", [False, True], ids=["one", "chunks"])
def test_gradient_value_and_closure_against_autograd(name, chunked):
    case = CASES[name]
    model = case.model()
    loss = case.loss(model(case.inputs), case.targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    objective = Objective(model, case.loss, case.chunks() if chunked else (case.inputs, case.targets))
    assert float(objective.value()) == pytest.approx(float(loss.detach()), rel=TIGHT)
    assert all(parameter.grad is None for parameter in model.parameters())
    flat = torch.cat([g.reshape(-1) for g in gradients])
    linearization = linearize(objective)
    assert relative(linearization.gradient.detach(), flat) < TIGHT
    assert not linearization.gradient.requires_grad
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)  # the closure overwrites, it does not add
    assert float(objective()) == pytest.approx(float(loss.detach()), rel=TIGHT)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert relative(parameter.grad, gradient) < TIGHT


def test_torch_optimizers_take_the_objective_as_their_closure():
    case = CASES["cross_entropy"]
    ours, theirs = case.model(), case.model()
    objective = Objective(ours, case.loss, case.chunks())
    torch.optim.SGD(ours.parameters(), lr=0.1).step(objective)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    case.loss(theirs(case.inputs), case.targets).backward()
    optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert relative(one.detach(), other.detach()) < TIGHT


# ---------------------------------------------------------------------------------------------------------------------
# Weight decay

DECAYS: dict[str, tuple[Any, Callable[[str, Tensor], float]]] = {
    "float": (0.3, lambda name, parameter: 0.3),
    "weights_only": (
        (0.3, lambda name, parameter: parameter.ndim > 1),
        lambda name, parameter: 0.3 if parameter.ndim > 1 else 0.0,
    ),
    "by_name": (
        (0.3, lambda name, parameter: name.startswith("2.")),
        lambda name, parameter: 0.3 if name.startswith("2.") else 0.0,
    ),
}


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("chunked", [False, True], ids=["one", "chunks"])
def test_weight_decay_in_loss_gradient_and_curvature(curvature, decay, chunked):
    case = CASES["cross_entropy_sum"]  # a sum: the decay must not be counted once per chunk
    model = case.model()
    given, per_parameter = DECAYS[decay]
    expected = dense_oracle(model, case.loss, case.inputs, case.targets, decay=per_parameter)
    assert relative(expected.gradient, oracle("cross_entropy_sum").gradient) > 1e-3
    data = case.chunks() if chunked else (case.inputs, case.targets)
    objective = Objective(model, case.loss, data, weight_decay=given)
    check_against(objective, expected, curvature)
    assert float(objective.value()) == pytest.approx(float(expected.loss), rel=TIGHT)
    assert float(objective()) == pytest.approx(float(expected.loss), rel=TIGHT)
    closure_gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    assert relative(closure_gradient, expected.gradient) < TIGHT


def test_weight_decay_counts_a_shared_weight_once():
    case = CASES["tied"]
    model = case.model()
    expected = dense_oracle(model, case.loss, case.inputs, case.targets, decay=lambda name, parameter: 0.3)
    check_against(Objective(model, case.loss, (case.inputs, case.targets), weight_decay=0.3), expected, "ggn")
