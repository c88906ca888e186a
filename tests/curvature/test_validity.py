"""How long a linearization holds, and that making one leaves the model alone."""

import pytest
import torch
from dense_oracle import dense_oracle
from product_cases import CASES, CURVATURES, METHODS, check_against, mlp, randn, seeded
from torch import nn
from torch.autograd.function import once_differentiable

from latephase import Objective
from latephase.curvature import linearize, over_blocks
from latephase.parameters import Versions


def change_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(1.0)


def change_by_step(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def change_by_loading(model: nn.Module) -> None:
    model.load_state_dict({name: value + 1.0 for name, value in model.state_dict().items()})


def change_through_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.sub_(0.1 * torch.ones_like(parameter))


def swap_two_entries_through_data(model: nn.Module) -> None:
    data = list(model.parameters())[-1].data  # sums and norms stay
    data.copy_(data.flip(0))


def change_through_numpy(model: nn.Module) -> None:
    next(model.parameters()).detach().numpy()[0, 0] += 1.0


def change_by_replacing_data(model: nn.Module) -> None:
    next(model.parameters()).data = 2.0 * next(model.parameters()).data


CHANGES = [
    change_in_place,
    change_by_step,
    change_by_loading,
    change_through_data,
    swap_two_entries_through_data,
    change_through_numpy,
    change_by_replacing_data,
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", CHANGES)
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


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_refused_after_a_write_through_data(method):
    case = CASES["cross_entropy"]
    model = case.model()
    linearization = linearize(Objective(model, case.loss, (case.inputs, case.targets)), method=method)
    change_through_data(model)
    with pytest.raises(RuntimeError, match="parameter"):
        _ = linearization.gradient
    with pytest.raises(RuntimeError, match="parameter"):
        over_blocks(linearization, [43]).matvec(torch.ones(43, dtype=linearization.space.dtype))


@pytest.mark.parametrize("method", METHODS)
def test_products_are_refused_once_data_or_frozen_parameters_are_written(method):
    case = CASES["cross_entropy"]
    for change in (lambda i, t, p: i.mul_(2.0), lambda i, t, p: t.copy_(t.flip(0)), lambda i, t, p: p.mul_(1.0)):
        model, inputs, targets = case.model(), case.inputs.clone(), case.targets.clone()
        frozen = next(model.parameters()).requires_grad_(False)
        linearization = linearize(Objective(model, case.loss, (inputs, targets)), method=method)
        v = torch.ones_like(linearization.gradient)
        linearization.matvec(v)
        model(inputs)  # reading is no change
        linearization.matvec(v)
        with torch.no_grad():
            change(inputs, targets, frozen)
        with pytest.raises(RuntimeError, match="written in place"):
            linearization.matvec(v)


def test_parameters_that_are_nan_are_not_taken_for_changed():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.bias[0] = torch.nan
    space = Objective(model, nn.MSELoss(), (torch.ones(2, 4), torch.ones(2, 3))).space()
    before = space.versions()
    assert before.hold()
    assert before == space.versions()
    model.bias.data[1] += 1.0
    assert not before.hold()
    assert before != space.versions()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_write_of_one_bit_is_seen(dtype):
    p = nn.Parameter(torch.zeros(3, 2, dtype=dtype).t())
    versions = Versions([p])
    assert versions.hold()
    p.data[1, 2] = -0.0
    assert not versions.hold()


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
