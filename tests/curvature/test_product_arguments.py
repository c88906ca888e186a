"""Arguments of `linearize`: a subset of the parameters, and what is refused."""

import pytest
import torch
from dense_oracle import columns, dense_oracle, relative
from product_cases import CASES, PRODUCTS, TIGHT, check_against, oracle
from torch import nn

from latephase import Objective
from latephase.curvature import linearize


@pytest.mark.parametrize(("curvature", "method"), PRODUCTS)
@pytest.mark.parametrize("which", ["head", "first", "permuted"])
def test_subset_of_the_parameters(curvature, method, which):
    case = CASES["cross_entropy"]
    model = case.model()
    weight, bias, head_weight, head_bias = model.parameters()
    parameters = {
        "head": [head_weight, head_bias],
        "first": [weight, bias],
        "permuted": [head_bias, weight, head_weight],
    }[which]
    expected = dense_oracle(model, case.loss, case.inputs, case.targets, parameters=parameters)
    objective = Objective(model, case.loss, (case.inputs, case.targets))
    check_against(objective, expected, curvature, method, parameters=parameters)


def test_subset_is_a_block_of_the_whole():
    whole = oracle("cross_entropy").ggn
    case = CASES["cross_entropy"]
    model = case.model()
    head = linearize(
        Objective(model, case.loss, (case.inputs, case.targets), weight_decay=0.2),
        parameters=list(model[2].parameters()),
    )
    assert relative(columns(head.matvec, 18), whole[25:, 25:] + 0.2 * torch.eye(18, dtype=torch.float64)) < TIGHT


def test_a_foreign_parameter_is_an_error():
    case = CASES["cross_entropy"]
    model = case.model()
    objective = Objective(model, case.loss, (case.inputs, case.targets))
    with pytest.raises(ValueError, match=r"."):
        linearize(objective, parameters=[*model.parameters(), nn.Parameter(torch.ones(2, dtype=torch.float64))])


def test_the_hessian_by_linearize_is_an_error():
    case = CASES["cross_entropy"]
    with pytest.raises(ValueError, match="double_backward"):
        linearize(Objective(case.model(), case.loss, (case.inputs, case.targets)), "hessian", method="linearize")


@pytest.mark.parametrize("options", [{"curvature": "nonsense"}, {"method": "nonsense"}], ids=["curvature", "method"])
def test_unknown_options_are_errors(options):
    case = CASES["cross_entropy"]
    with pytest.raises(ValueError, match="nonsense"):
        linearize(Objective(case.model(), case.loss, (case.inputs, case.targets)), **options)


def test_a_frozen_parameter_keeps_no_gradient():
    case = CASES["frozen_layer"]
    model = case.model()
    Objective(model, case.loss, (case.inputs, case.targets))()
    assert [parameter.grad is None for parameter in model.parameters()] == [True, True, False, False]


def test_without_products_loss_and_gradient_are_the_same_and_the_graphs_are_let_go():
    case = CASES["cross_entropy"]
    objective = Objective(case.model(), case.loss, case.chunks(), weight_decay=0.1)
    whole, light = linearize(objective), linearize(objective, products=False)
    assert torch.equal(light.loss, whole.loss)
    assert relative(light.gradient, whole.gradient) < TIGHT
    with pytest.raises(RuntimeError, match="products=False"):
        light.matvec(torch.ones_like(light.gradient))
