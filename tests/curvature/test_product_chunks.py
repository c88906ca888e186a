"""Data in several chunks or microbatches is the same function as data in one."""

import pytest
from dense_oracle import dense_oracle
from product_cases import CASES, CHUNKED, CLASSES, CURVATURES, TIGHT, VECTORS, check_against, mlp, oracle, seeded
from torch import nn

from latephase import Objective


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", CHUNKED)
def test_four_unequal_chunks_are_the_same_function(name, curvature):
    case = CASES[name]
    objective = Objective(case.model(), case.loss, case.chunks(), **case.options())
    check_against(objective, oracle(name), curvature)
    assert float(objective.value()) == pytest.approx(float(oracle(name).loss), rel=TIGHT)


@pytest.mark.parametrize("method", ["traced", "linearize"])
@pytest.mark.parametrize("name", ["cross_entropy_smoothing_weights", "tied"])
def test_chunks_by_a_method_of_choice(name, method):
    case = CASES[name]
    check_against(Objective(case.model(), case.loss, case.chunks()), oracle(name), "ggn", method)


@pytest.mark.parametrize("size", [1, 4, 11, 100])
@pytest.mark.parametrize("name", ["cross_entropy_weights", "squared_error_sum", "convolution", "dict_inputs"])
def test_microbatches_are_the_same_function(name, size):
    case = CASES[name]
    data = (case.inputs, case.targets)
    objective = Objective(case.model(), case.loss, data, microbatch_size=size, **case.options())
    check_against(objective, oracle(name), "ggn")
    assert float(objective.value()) == pytest.approx(float(oracle(name).loss), rel=TIGHT)


def test_a_chunk_without_a_counted_target_has_weight_zero():
    # Its own mean is 0/0; the whole batch's is not.
    model, loss = seeded(mlp), nn.CrossEntropyLoss()
    targets = CLASSES.clone()
    targets[:4] = -100
    objective = Objective(model, loss, [(VECTORS[:4], targets[:4]), (VECTORS[4:], targets[4:])])
    expected = dense_oracle(model, loss, VECTORS, targets)
    check_against(objective, expected, "ggn")
    assert float(objective.value()) == pytest.approx(float(expected.loss), rel=TIGHT)


def test_chunks_need_a_loss_that_names_its_reduction():
    case = CASES["lambda"]
    assert float(Objective(case.model(), case.loss, (case.inputs, case.targets)).value()) > 0
    with pytest.raises((TypeError, ValueError), match="reduction"):
        Objective(case.model(), case.loss, case.chunks()).value()
