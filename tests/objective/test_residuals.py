"""Residual objectives: loss, gradient, curvature and rows are those of dense matrices, in any cut and form."""

import copy
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from residual_cases import EDGE, EXACT, INTERIOR, WEIGHTS, dense, edge, network, objective_of, poisson, uniform
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize

METHODS = ("traced", "double_backward", "auto")


def rows_of(objective: Objective, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="rows of .* are computed example by example")
        return linearize(objective, **options).rows()


def matrix_of(curved: Any) -> Tensor:
    return torch.stack([curved.matvec(unit) for unit in torch.eye(curved.space.size, dtype=torch.float64)])


@pytest.mark.parametrize("form", ["autograd", "transforms"])
@pytest.mark.parametrize("size", [None, 2, 4])
def test_loss_gradient_products_and_rows_are_the_dense_ones(form, size):
    model = network()
    exact = dense(model, WEIGHTS)
    objective = objective_of(form, model, microbatch_size=size)
    assert len(objective.chunks) == {None: 2, 2: 7, 4: 4}[size]
    torch.testing.assert_close(objective.value(), exact.loss, **EXACT)
    torch.testing.assert_close(objective(), exact.loss, **EXACT)
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(gradients, exact.gradient, **EXACT)
    for method in METHODS:
        curved = linearize(objective, method=method)
        torch.testing.assert_close(curved.loss, exact.loss, **EXACT)
        torch.testing.assert_close(curved.gradient, exact.gradient, **EXACT)
        torch.testing.assert_close(matrix_of(curved), exact.ggn, **EXACT)
        v = torch.ones(curved.space.size, dtype=torch.float64)
        torch.testing.assert_close(curved.quadratic_form(v), v @ exact.ggn @ v, **EXACT)
    rows = rows_of(objective)
    torch.testing.assert_close(rows, exact.rows, **EXACT)
    torch.testing.assert_close(rows.mT @ rows, exact.ggn, **EXACT)
    if size is None:
        curved = linearize(objective, curvature="hessian")
        torch.testing.assert_close(matrix_of(curved), exact.hessian, rtol=1e-11, atol=1e-11)


def test_row_pieces_are_the_rows():
    objective = objective_of("transforms", microbatch_size=4)
    pieces = list(linearize(objective).row_pieces(3))
    assert max(map(len, pieces)) <= 3
    torch.testing.assert_close(torch.cat(pieces), rows_of(objective), rtol=0, atol=1e-13)


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.5])
def test_a_single_term_has_its_weight_too(weight):
    model = network()
    objective = Objective.from_residuals(model, {"edge": (edge, EDGE)}, weights={"edge": weight})
    exact = dense(model, {"interior": 0.0, "boundary": weight})
    torch.testing.assert_close(objective.value(), exact.loss, **EXACT)
    curved = linearize(objective)
    torch.testing.assert_close(curved.gradient, exact.gradient, **EXACT)
    torch.testing.assert_close(matrix_of(curved), exact.ggn, **EXACT)
    torch.testing.assert_close(rows_of(objective), exact.rows[-2 * len(EDGE[0]) :], **EXACT)
    assert bool(matrix_of(curved).any()) == (weight > 0)


def test_decay_is_in_loss_gradient_and_products_and_not_in_rows():
    model = network()
    exact, theta = dense(model, WEIGHTS), torch.cat([p.detach().flatten() for p in model.parameters()])
    curved = linearize(objective_of("transforms", model, weight_decay=0.3))
    torch.testing.assert_close(curved.loss, exact.loss + 0.15 * theta @ theta, **EXACT)
    torch.testing.assert_close(curved.gradient, exact.gradient + 0.3 * theta, **EXACT)
    torch.testing.assert_close(matrix_of(curved), exact.ggn + 0.3 * torch.eye(len(theta)).double(), **EXACT)
    torch.testing.assert_close(curved.rows(), exact.rows, **EXACT)


def test_terms_are_mean_squares_that_make_up_the_value():
    objective = objective_of(weight_decay=0.3, microbatch_size=2)
    terms = objective.terms()
    assert list(terms) == ["interior", "boundary"]
    x = INTERIOR.clone()
    torch.testing.assert_close(terms["interior"], poisson(objective.model, x).detach().square().mean(), **EXACT)
    torch.testing.assert_close(terms["boundary"], edge(objective.model, EDGE).detach().square().sum(1).mean(), **EXACT)
    decay = 0.15 * sum(p.detach().square().sum() for p in objective.model.parameters())
    torch.testing.assert_close(sum(WEIGHTS[name] * terms[name] for name in terms) + decay, objective.value(), **EXACT)
    assert not any(term.requires_grad or term.dim() for term in terms.values())
    monitored = objective_of(weights={"boundary": 0.0}).terms()
    torch.testing.assert_close(monitored["boundary"], terms["boundary"], **EXACT)


def test_on_redraws_some_terms_and_leaves_the_others():
    model = network()
    objective = objective_of("autograd", model, microbatch_size=3)
    linearize(objective)
    points = uniform(5, 2, seed=7)
    redrawn = objective.on({"interior": points})
    exact = dense(model, WEIGHTS, interior=points)
    torch.testing.assert_close(redrawn.value(), exact.loss, **EXACT)
    curved = linearize(redrawn)
    torch.testing.assert_close(curved.gradient, exact.gradient, **EXACT)
    torch.testing.assert_close(matrix_of(curved), exact.ggn, **EXACT)
    assert [chunk.rows for chunk in redrawn.chunks] == [3, 2, 3, 1]
    torch.testing.assert_close(objective.value(), dense(model, WEIGHTS).loss, **EXACT)
    both = redrawn.on({"boundary": (EDGE[0][:2], EDGE[1][:2]), "interior": INTERIOR})
    exact = dense(model, WEIGHTS, edges=(EDGE[0][:2], EDGE[1][:2]))
    torch.testing.assert_close(both.value(), exact.loss, **EXACT)
    torch.testing.assert_close(redrawn.on({}).value(), redrawn.value(), rtol=0, atol=0)


def test_the_points_given_stay_as_they_are():
    points, edges = INTERIOR.clone(), tuple(x.clone().requires_grad_() for x in EDGE)
    objective = Objective.from_residuals(network(), {"interior": (poisson, points), "boundary": (edge, edges)})
    objective()
    assert linearize(objective).gradient.isfinite().all()
    assert not points.requires_grad
    assert points.grad is None
    assert edges[0].grad is None
    torch.testing.assert_close(points, INTERIOR, rtol=0, atol=0)


def test_points_that_a_function_writes_are_copies():
    points = INTERIOR.clone()

    def writes(model: nn.Module, x: Tensor) -> Tensor:
        return model(x.mul_(2))

    def reads(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)

    objective = Objective.from_residuals(network(), {"b": (reads, points), "a": (writes, points)})
    expected = network()(INTERIOR).detach().square().mean() + network()(2 * INTERIOR).detach().square().mean()
    for _ in range(3):
        torch.testing.assert_close(objective.value(), expected, **EXACT)
    torch.testing.assert_close(linearize(objective).loss, expected, **EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_and_chosen_parameters(method):
    model = network()
    model[2].weight.requires_grad_(False)
    exact = dense(model, WEIGHTS)
    curved = linearize(objective_of("transforms", model), method=method)
    torch.testing.assert_close(matrix_of(curved), exact.ggn, **EXACT)
    torch.testing.assert_close(curved.rows(), exact.rows, **EXACT)
    chosen = linearize(objective_of("transforms", model), parameters=[model[0].bias], method=method)
    torch.testing.assert_close(matrix_of(chosen), exact.ggn[10:15, 10:15], **EXACT)


class Twice(nn.Module):
    """A network one of whose layers is used twice, under two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.last = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.again = self.inner
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.again(torch.tanh(self.inner(torch.tanh(self.first(x)))))))


@pytest.mark.parametrize("method", METHODS)
def test_tied_parameters(method):
    model = Twice()
    exact = dense(model, WEIGHTS)
    curved = linearize(objective_of("transforms", model), method=method)
    torch.testing.assert_close(curved.gradient, exact.gradient, **EXACT)
    torch.testing.assert_close(matrix_of(curved), exact.ggn, **EXACT)
    torch.testing.assert_close(curved.rows(), exact.rows, **EXACT)


def test_float32_is_float64_to_its_digits():
    model = network()
    exact = dense(model, WEIGHTS)
    terms = {"interior": (poisson, INTERIOR.float()), "boundary": (edge, tuple(x.float() for x in EDGE))}
    objective = Objective.from_residuals(copy.deepcopy(model).float(), terms, weights=WEIGHTS)
    curved = linearize(objective)
    assert curved.loss.dtype == torch.float32
    # Losses in the hundreds, sums of some dozen terms, second derivatives of the network inside: five digits stay.
    torch.testing.assert_close(curved.loss.double(), exact.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        curved.gradient.double(), exact.gradient, rtol=1e-4, atol=1e-4 * exact.gradient.norm().item()
    )
    rows = rows_of(objective).double()
    torch.testing.assert_close(rows, exact.rows, rtol=1e-4, atol=1e-4 * float(exact.rows.abs().max()))


def test_memory_limits_change_nothing():
    model = network()
    exact = dense(model, WEIGHTS)
    for options in ({"microbatch_size": "auto", "memory_limit": 3_000}, {"microbatch_size": 3, "memory_limit": 0}):
        objective = objective_of("autograd", model, **options)
        assert len(objective.chunks) > 2
        curved = linearize(objective)
        assert curved.recomputed > 0
        torch.testing.assert_close(matrix_of(curved), exact.ggn, **EXACT)
    again = objective_of("autograd", model, microbatch_size="auto", memory_limit=3_000).on({"interior": INTERIOR})
    torch.testing.assert_close(again.value(), exact.loss, **EXACT)


@pytest.mark.parametrize("mode", ["no_grad", "dropout", "compiled", "half"])
def test_kinds_of_models(mode):
    model: nn.Module = network()
    if mode == "no_grad":
        with torch.no_grad():
            objective = objective_of("autograd", model)
            torch.testing.assert_close(objective.value(), dense(model, WEIGHTS).loss, **EXACT)
            torch.testing.assert_close(linearize(objective).gradient, dense(model, WEIGHTS).gradient, **EXACT)
    elif mode == "dropout":
        model = nn.Sequential(model, nn.Linear(1, 3), nn.Dropout(0.5), nn.Linear(3, 1)).double()
        curved = linearize(objective_of("autograd", model))
        assert curved.loss == curved.source.value()  # of the same masks
        torch.testing.assert_close(rows_of(curved.source).mT @ rows_of(curved.source), matrix_of(curved), **EXACT)
    elif mode == "compiled":
        objective = objective_of("autograd", torch.compile(model, backend="eager"))
        torch.testing.assert_close(objective.value(), dense(model, WEIGHTS).loss, **EXACT)
    else:
        x, y = (each.bfloat16() for each in EDGE)
        objective = Objective.from_residuals(model.bfloat16(), {"edge": (edge, (x, y))})
        curved = linearize(objective)
        assert curved.loss.dtype == torch.float32
        assert curved.loss == pytest.approx(float(objective.terms()["edge"]))


SIZES = st.integers(1, 6)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(SIZES, min_size=1, max_size=3),
    widths=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    weights=st.lists(st.floats(0, 1e3), min_size=3, max_size=3),
    size=st.none() | SIZES,
    decay=st.sampled_from([0.0, 0.1]),
)
def test_any_shapes_weights_and_chunks(rows, widths, weights, size, decay):
    """Residuals that are linear in the parameters: all is known by hand."""
    model = nn.Linear(2, 1, bias=False).double()

    def term(width: int) -> Any:
        if not width:
            return lambda m, x: m(x).squeeze(1) - 1
        return lambda m, x: m(x) * torch.arange(1, width + 1) - 1

    points = [uniform(n, 2, seed=i) for i, n in enumerate(rows)]
    terms = {f"t{i}": (term(widths[i]), x) for i, x in enumerate(points)}
    objective = Objective.from_residuals(
        model, terms, weights={f"t{i}": weights[i] for i in range(len(rows))}, microbatch_size=size, weight_decay=decay
    )
    theta = model.weight.detach().flatten()
    scaled, sides = [], []
    for x, width, weight in zip(points, widths, weights, strict=False):
        factors = torch.arange(1, max(width, 1) + 1, dtype=torch.float64)
        root = (weight / len(x)) ** 0.5
        scaled.append(root * torch.einsum("nd,k->nkd", x, factors).reshape(-1, 2))
        sides.append(torch.full((len(scaled[-1]),), root, dtype=torch.float64))
    a, b = torch.cat(scaled), torch.cat(sides)
    r = a @ theta - b
    scale = {"rtol": 1e-11, "atol": 1e-11 * float(1 + a.square().sum() + b.square().sum())}
    curved = linearize(objective, method="double_backward")
    torch.testing.assert_close(objective.value(), r @ r + 0.5 * decay * theta @ theta, **scale)
    torch.testing.assert_close(curved.gradient, 2 * a.mT @ r + decay * theta, **scale)
    torch.testing.assert_close(curved.rows(), 2**0.5 * a, **scale)
    v = uniform(2, seed=11)
    torch.testing.assert_close(curved.matvec(v), 2 * a.mT @ (a @ v) + decay * v, **scale)
