"""Training mode: dropout is one fixed function, and batch normalisation keeps its buffers."""

import pytest
import torch
from dense_oracle import dense_oracle, relative
from product_cases import CURVATURES, PRODUCTS, REALS, TIGHT, Case, check_against, normalized, randn
from torch import nn

from latephase import Objective
from latephase.curvature import linearize


def dropout_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 3)).train()


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("method", ["auto", "traced", "double_backward"])
@pytest.mark.parametrize("chunked", [False, True], ids=["one", "chunks"])
def test_dropout_is_one_fixed_function(curvature, method, chunked):
    case = Case(dropout_mlp, nn.CrossEntropyLoss())
    objective = Objective(case.model(), case.loss, case.chunks() if chunked else (case.inputs, case.targets))
    linearization = linearize(objective, curvature=curvature, method=method)
    assert float(linearization.loss) == pytest.approx(float(objective.value()), rel=1e-13)
    size = linearization.gradient.numel()
    u, v = randn(size, seed=1), randn(size, seed=2)
    first, second = linearization.matvec(u), linearization.matvec(v)
    assert torch.equal(linearization.matvec(u), first)
    assert float(v @ first) == pytest.approx(float(u @ second), rel=TIGHT)
    assert float(linearization.quadratic_form(v)) == pytest.approx(float(v @ second), rel=TIGHT)
    assert relative(linearization.matvec(u + v), first + second) < TIGHT
    assert float(linearization.loss) == pytest.approx(float(objective.value()), rel=1e-13)


def test_dropout_is_on():
    # Otherwise the test above would show nothing: the loss is not that of evaluation mode.
    case = Case(dropout_mlp, nn.CrossEntropyLoss())
    train, evaluation = case.model(), case.model().eval()
    data = (case.inputs, case.targets)
    torch.manual_seed(0)
    difference = float(Objective(train, case.loss, data).value()) - float(
        Objective(evaluation, case.loss, data).value()
    )
    assert abs(difference) > 1e-3


def test_a_trace_that_would_draw_new_masks_is_refused():
    # torch.func.linearize keeps the drawing of the mask in its trace; asked for by name, that is an error, not a guess.
    case = Case(dropout_mlp, nn.CrossEntropyLoss())
    linearization = linearize(Objective(case.model(), case.loss, (case.inputs, case.targets)), method="linearize")
    with pytest.raises(RuntimeError, match="random"):
        linearization.matvec(torch.ones_like(linearization.gradient))


@pytest.mark.parametrize("method", ["auto", "traced", "double_backward"])
@pytest.mark.parametrize("chunked", [False, True], ids=["one", "chunks"])
def test_loss_gradient_and_products_share_the_dropout_mask(method, chunked):
    # Dropout, then a linear layer, then squared error: f is a quadratic of theta for any one mask, so that
    # f = g'theta - 0.5 theta'G theta + f(0) and f(0) = mean(y^2). It fails if two of f, g and G see different masks.
    case = Case(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).train(), nn.MSELoss(), targets=REALS)
    model = case.model()
    objective = Objective(model, case.loss, case.chunks() if chunked else (case.inputs, case.targets))
    linearization = linearize(objective, method=method)
    theta = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    loss = linearization.gradient @ theta - 0.5 * theta @ linearization.matvec(theta) + REALS.pow(2).mean()
    assert float(linearization.loss) == pytest.approx(float(loss), rel=TIGHT)
    assert float(objective.value()) == pytest.approx(float(loss), rel=TIGHT)


@pytest.mark.parametrize(("curvature", "method"), PRODUCTS)
def test_batch_norm_in_training_mode(curvature, method):
    case = Case(lambda: normalized().train(), nn.CrossEntropyLoss())
    model = case.model()
    expected = dense_oracle(model, case.loss, case.inputs, case.targets)
    evaluation = dense_oracle(case.model().eval(), case.loss, case.inputs, case.targets)
    assert relative(expected.loss, evaluation.loss) > 1e-3
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    objective = Objective(model, case.loss, (case.inputs, case.targets))
    check_against(objective, expected, curvature, method)
    assert float(objective.value()) == pytest.approx(float(expected.loss), rel=TIGHT)
    assert model.training
    assert len(before) == 3
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
