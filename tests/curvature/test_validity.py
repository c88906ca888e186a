"""How long a linearization holds, and that making one leaves the model alone."""

import pytest
import torch
from dense_oracle import dense_oracle
from product_cases import CASES, CURVATURES, METHODS, check_against, mlp, randn, seeded
from torch import nn
from torch.autograd.function import once_differentiable

from latephase import Objective
from latephase.curvature import linearize


def change_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(1.0)


def change_by_step(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def change_by_loading(model: nn.Module) -> None:
    model.load_state_dict({name: value + 1.0 for name, value in model.state_dict().items()})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", [change_in_place, change_by_step, change_by_loading])
def test_products_are_refused_once_the_parameters_changed(method, change):
    case = CASES["cross_entropy"]
    model = case.model()
    linearization = linearize(Objective(model, case.loss, (case.inputs, case.targets)), method=method)
    v = torch.ones_like(linearization.gradient)
    linearization.matvec(v)
    change(model)
    with pytest.raises(RuntimeError, match="parameter"):
        linearization.matvec(v)
    with pytest.raises(RuntimeError, match="parameter"):
        linearization.quadratic_form(v)


def test_two_linearizations_of_one_objective():
    # The second, at another point, must not disturb what is kept of the first: a trace is shared, its numbers are not.
    case = CASES["cross_entropy"]
    model, other = case.model(), seeded(mlp, seed=1)
    objective = Objective(model, case.loss, (case.inputs, case.targets))
    linearize(objective).matvec(randn(43, seed=1))
    model.load_state_dict(other.state_dict())
    check_against(objective, dense_oracle(other, case.loss, case.inputs, case.targets), "ggn")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["convolution", "tied", "shared_module", "batch_norm_eval"])
def test_linearize_leaves_the_model_alone(name, method):
    case = CASES[name]
    model = case.model()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective = Objective(model, case.loss, (case.inputs, case.targets))
    for curvature in CURVATURES if method != "linearize" else ["ggn"]:
        linearization = linearize(objective, curvature=curvature, method=method)
        linearization.matvec(torch.ones_like(linearization.gradient))
        objective.value()
        objective.value(at=dict(model.named_parameters()))
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameter for name, parameter in parameters.items())  # the very objects
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * slope


class _Cubic(nn.Module):
    def forward(self, x):
        return _OnceDifferentiable.apply(x)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_a_function_that_is_once_differentiable_is_refused(curvature):
    """The backward pass through its backward pass would leave its terms out, without a word."""
    model = nn.Sequential(nn.Linear(3, 4), _Cubic(), nn.Linear(4, 2)).double()
    data = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    linear = linearize(Objective(model, nn.MSELoss(), data), curvature)
    with pytest.raises(RuntimeError, match=r"layer '1' \(_Cubic\) can be differentiated neither twice"):
        linear.matvec(torch.ones(linear.space.size, dtype=torch.float64))
