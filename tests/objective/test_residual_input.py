"""What can be wrong with terms, each error naming the term and the remedy."""

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from residual_cases import EDGE, INTERIOR, edge, network, objective_of, uniform
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from latephase import HessianFree, Objective
from latephase.curvature import linearize
from rank_processes import message_of


def values(model: nn.Module, points: Tensor) -> Tensor:
    return model(points)


def spoiled(row: int, value: float) -> Tensor:
    points = INTERIOR.clone()
    points[row, 1] = value
    return points


BAD_TERMS: dict[str, tuple[Any, type[Exception], str]] = {
    "no dict": ([(values, INTERIOR)], TypeError, r"terms are a dict .*got list"),
    "pair alone": ((values, INTERIOR), TypeError, r"terms are a dict .*got tuple"),
    "none": ({}, ValueError, "there is no term"),
    "number as name": ({3: (values, INTERIOR)}, TypeError, "the name 3, which is no string"),
    "no pair": ({"a": values}, TypeError, "term 'a' must be a pair"),
    "points first": ({"a": (INTERIOR, values)}, TypeError, "term 'a' .* callable .* got Tensor"),
    "one argument": ({"a": (lambda model: model, INTERIOR)}, TypeError, "term 'a' is called as function"),
    "integers": ({"a": (values, torch.arange(4))}, TypeError, "points of term 'a' are torch.int64"),
    "array": ({"a": (values, INTERIOR.numpy())}, TypeError, "points of term 'a' must be a tensor.*torch.as_tensor"),
    "number": ({"a": (values, (INTERIOR, 3.0))}, TypeError, r"points\[1\] of term 'a' must be a tensor"),
    "no tensor": ({"a": (values, ())}, TypeError, "term 'a' has no tensor of points"),
    "scalar": ({"a": (values, torch.tensor(1.0))}, ValueError, "points of term 'a' is a scalar"),
    "unequal rows": ({"a": (edge, (EDGE[0], EDGE[1][:3]))}, ValueError, r"points of term 'a' have 4 and 3 rows"),
    "empty": ({"a": (values, INTERIOR), "b": (values, INTERIOR[:0])}, ValueError, "term 'b' has no points"),
    "all empty": ({"b": (values, INTERIOR[:0])}, ValueError, "term 'b' has no points"),
    "nan": ({"a": (values, spoiled(5, math.nan))}, ValueError, "points of term 'a' are not finite in 1 rows.* row 5"),
    "inf": ({"a": (edge, (spoiled(2, -math.inf), INTERIOR))}, ValueError, r"points\[0\] of term 'a' .* row 2"),
    "no tensor back": ({"a": (lambda m, x: 3.0, INTERIOR)}, TypeError, "term 'a' must return a tensor .* got float"),
    "integers back": ({"a": (lambda m, x: m(x).long(), INTERIOR)}, TypeError, "term 'a' must return floating-point"),
    "mean": ({"a": (lambda m, x: m(x).mean(), INTERIOR)}, ValueError, r"term 'a' returns residuals of shape \[\] at 9"),
    "too few": ({"a": (lambda m, x: m(x)[1:], INTERIOR)}, ValueError, r"term 'a' returns .* \[8, 1\] at 9 points"),
    "three dims": ({"a": (lambda m, x: m(x)[..., None], INTERIOR)}, ValueError, r"term 'a' returns .*\[9, 1, 1\]"),
    "detached": ({"a": (lambda m, x: m(x).detach(), INTERIOR)}, ValueError, "term 'a' do not depend on the model's"),
    "no model": ({"a": (lambda m, x: x, INTERIOR)}, ValueError, "term 'a' do not depend on the model's"),
    "0 / 0": (
        {"a": (values, INTERIOR), "b": (lambda m, x: m(x) / (x[:, :1] - INTERIOR[3, 0]), INTERIOR)},
        ValueError,
        "residuals of term 'b' are not finite at 1 points, the first in row 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TERMS)
def test_bad_terms(name):
    terms, kind, words = BAD_TERMS[name]
    with pytest.raises(kind, match=words):
        Objective.from_residuals(network(), terms)


@pytest.mark.parametrize(
    ("weights", "kind", "words"),
    [
        ([1.0], TypeError, "weights are a dict"),
        ({"x": 1.0}, ValueError, "given for 'x', but the terms are 'interior', 'boundary'"),
        ({"interior": -1.0}, ValueError, "weight of term 'interior' must be finite and >= 0, got -1.0"),
        ({"boundary": math.nan}, ValueError, "weight of term 'boundary' must be finite"),
        ({"boundary": math.inf}, ValueError, "weight of term 'boundary' must be finite"),
        ({"boundary": "3"}, TypeError, "weight of term 'boundary' must be a number"),
        ({"boundary": torch.tensor(3.0)}, TypeError, "weight of term 'boundary' must be a number.*float"),
        ({1: 3.0}, TypeError, "the name 1, which is no string"),
    ],
)
def test_bad_weights(weights, kind, words):
    with pytest.raises(kind, match=words):
        objective_of(weights=weights)


def test_other_options_are_those_of_the_constructor():
    with pytest.raises(ValueError, match="memory_limit"):
        objective_of(memory_limit=-1)
    with pytest.raises(ValueError, match="microbatch_size must be"):
        objective_of(microbatch_size=0)
    with pytest.raises(ValueError, match="weight_decay"):
        objective_of(weight_decay=-1.0)
    with pytest.raises(TypeError, match="model must be"):
        Objective.from_residuals(values, {"a": (values, INTERIOR)})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (INTERIOR, TypeError, "takes the points of some terms"),
        ({"inside": INTERIOR}, ValueError, "no term 'inside': the terms are 'interior', 'boundary'"),
        ({"interior": uniform(4, 3)}, ValueError, "term 'interior' are float64 .*'N', 3.* were float64 .*'N', 2"),
        ({"interior": INTERIOR.float()}, ValueError, "term 'interior' are float32"),
        ({"boundary": EDGE[0]}, ValueError, "points of term 'boundary' are .* of the same kind"),
        ({"boundary": (EDGE[0], EDGE[1][:2])}, ValueError, "points of term 'boundary' have 4 and 2 rows"),
        ({"interior": INTERIOR[:0]}, ValueError, "term 'interior' has no points"),
        ({"interior": spoiled(8, math.nan)}, ValueError, "term 'interior' are not finite in 1 rows, the first row 8"),
    ],
)
def test_bad_points_for_on(data, kind, words):
    objective = objective_of()
    before = objective.value()
    with pytest.raises(kind, match=words):
        objective.on(data)
    assert objective.value() == before


def test_residuals_that_change_in_number():
    def changing(model: nn.Module, points: Tensor) -> Tensor:
        return model(points).expand(-1, 1 if len(points) == 9 else 2)

    objective = Objective.from_residuals(network(), {"a": (changing, INTERIOR)})
    redrawn = objective.on({"a": uniform(4, 2)})
    with pytest.raises(ValueError, match=r"term 'a' returns residuals of shape \[4, 2\], where .* \['N', 1\] before"):
        redrawn.value()


def test_terms_are_of_objectives_that_have_some():
    with pytest.raises(ValueError, match="one term"):
        Objective(nn.Linear(2, 1), nn.MSELoss(), (torch.rand(3, 2), torch.rand(3, 1))).terms()


def test_an_error_inside_a_function_names_the_term():
    with pytest.raises(RuntimeError) as caught:
        objective_of(model=network().float())
    said = "in the residuals of term 'interior', whose points are float64 [9, 2]; the parameters are float32"
    assert said in caught.value.__notes__


def test_points_that_become_bad_and_residuals_that_are_are_found_by_a_step():
    model, points = network(), INTERIOR.clone()
    objective = Objective.from_residuals(model, {"a": (values, INTERIOR), "b": (values, points)}, microbatch_size=4)
    points[6] = math.nan
    with pytest.raises(ValueError, match="points of term 'b' are not finite in 1 rows, the first row 6"):
        linearize(objective)

    def root(net: nn.Module, x: Tensor) -> Tensor:
        return (net(x) - low).sqrt()

    low = float(network()(INTERIOR).min().detach()) - 0.1
    objective = Objective.from_residuals(model, {"a": (values, INTERIOR), "b": (root, INTERIOR)}, microbatch_size=4)
    low += 0.1 + 1e-9
    row = int(network()(INTERIOR).argmin())
    with pytest.raises(ValueError, match=f"residuals of term 'b' are not finite at 1 points, the first in row {row}"):
        HessianFree(model.parameters()).step(objective)


def mixed(model: nn.Module, points: Tensor) -> Tensor:
    return model(points) - model(points).mean()


def hidden(model: nn.Module, points: Tensor) -> Tensor:
    return model(points) - model(points).sort(0).values


def test_rows_of_a_function_that_mixes_them_are_the_residuals_own_where_that_can_be_followed():
    model = network()
    rows = linearize(Objective.from_residuals(model, {"b": (mixed, INTERIOR)})).rows()

    def residuals(*parameters: Tensor) -> Tensor:
        named = dict(zip(dict(model.named_parameters()), parameters, strict=True))
        u = torch.func.functional_call(model, named, (INTERIOR,))
        return (u - u.mean())[:, 0]

    pieces = torch.autograd.functional.jacobian(residuals, tuple(p.detach() for p in model.parameters()))
    expected = torch.cat([piece.reshape(len(piece), -1) for piece in pieces], 1) * (2 / len(INTERIOR)) ** 0.5
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)


def test_a_function_that_mixes_rows_out_of_sight_has_products_and_no_rows():
    objective = Objective.from_residuals(network(), {"a": (values, INTERIOR), "b": (hidden, INTERIOR)})
    assert linearize(objective).matvec(torch.ones(44, dtype=torch.float64)).isfinite().all()
    with pytest.raises(ValueError, match="the residuals of term 'b' at a point depend on other points"):
        linearize(objective).rows()


def test_a_function_that_holds_values_of_all_points():
    source, model = uniform(9, seed=3), network()
    objective = Objective.from_residuals(model, {"a": (lambda m, x: m(x)[:, 0] - source, INTERIOR)})
    same = Objective.from_residuals(model, {"a": (lambda m, x: m(x[0])[:, 0] - x[1], (INTERIOR, source))})
    v = uniform(44, seed=4)
    torch.testing.assert_close(linearize(objective).matvec(v), linearize(same).matvec(v), rtol=1e-12, atol=1e-12)
    try:
        rows = linearize(objective).rows()
    except ValueError as error:  # where they are computed point by point
        assert re.search(r"term 'a' returns .*\(function, \(points, values\)\)", str(error))  # noqa: PT017
    else:
        torch.testing.assert_close(rows, linearize(same).rows(), rtol=1e-12, atol=1e-12)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        Objective.from_residuals(model, {"a": (lambda m, x: m(x)[:, 0] - source, INTERIOR)}, microbatch_size=4)
    assert "in the residuals of term 'a'" in caught.value.__notes__[0]


def first_tensor(model: nn.Module, points: Any) -> Tensor:
    return model(tree_leaves(points)[0])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(values) | st.just(INTERIOR),
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(terms=ANYTHING, weights=ANYTHING)
def test_nothing_given_ends_in_an_obscure_error(terms, weights):
    """Whatever is no dict of terms is refused by type or value, before anything is computed with it."""

    def loss_of(terms: Any, weights: Any) -> Tensor:
        return Objective.from_residuals(network(), terms, weights=weights).value()

    found = message_of(lambda: loss_of(terms, weights))
    assert not found or re.match(r"(Type|Value)Error: .*(term|weight|points)", found)
    found = message_of(lambda: loss_of({"a": (first_tensor, terms)}, None))
    assert not found or re.match(r"(Type|Value)Error: .*(term|points)", found)
