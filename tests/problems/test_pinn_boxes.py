"""The physics-informed problems on a box: residuals against differences in NumPy, conditions, rows, the error."""

import itertools

import numpy as np
import pytest
import torch
from box_cases import CASES, HARD, PLACES, as_function, exact, made, terms_of
from torch import nn

from latephase import GaussNewton
from latephase.curvature import linearize
from latephase.curvature.rows import chunk_rows
from latephase.study.performing.evaluate import Evaluator

pytestmark = pytest.mark.usefixtures("float64")


STENCILS = {
    1: (1e-3, {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}),
    2: (2e-3, {-2: -1 / 12, -1: 4 / 3, 0: -5 / 2, 1: 4 / 3, 2: -1 / 12}),
    3: (5e-3, {-3: 1 / 8, -2: -1, -1: 13 / 8, 1: -13 / 8, 2: 1, 3: -1 / 8}),
}
"""Fourth-order differences: step, and weights by offset. They err by h^4 of a derivative four orders higher, times 1/30
to 7/120, and by rounding of 1e-16 / h^order: some 1e-9."""
PRECISE = 1e-6


def derivative(f, points, axis, order=1):
    h, weights = STENCILS[order]
    unit = np.eye(points.shape[1])[axis]
    return sum(weight * f(points + offset * h * unit) for offset, weight in weights.items()) / h**order


def prescribed(name, points):
    """Values at the beginning and on the faces, [N]."""
    x = points[:, 0]
    starts = {
        "burgers": lambda: np.where(np.abs(x) == 1, 0, -np.sin(np.pi * x) * (points[:, 1] == 0)),
        "allen_cahn": lambda: x**2 * np.cos(np.pi * x),
        "kdv": lambda: np.cos(np.pi * x),
    }
    return starts[name]() if name in starts else exact(name, points)


def reference_interior(name, f, points):
    """The equation's left side minus its right side, [N]."""
    u, places = f(points), PLACES[name]
    laplacian = sum(derivative(f, points, axis, 2) for axis in range(places))
    if name == "helmholtz":
        return laplacian + u - (1 - 17 * np.pi**2) * exact(name, points)
    if name.startswith("poisson"):
        factor = {"poisson2d": 2 * np.pi**2, "poisson5d": np.pi**2, "poisson10d": 0}[name]
        return -laplacian - factor * exact(name, points)
    u_t = derivative(f, points, places)
    if name.startswith("heat"):
        return u_t - laplacian / 4
    if name == "allen_cahn":
        return u_t - 1e-4 * laplacian + 5 * u**3 - 5 * u
    return u_t + u * derivative(f, points, 0) + {
        "burgers": lambda: -0.01 / np.pi * laplacian,
        "kdv": lambda: 0.0025 * derivative(f, points, 0, 3),
    }[name]()  # fmt: skip


def reference_residuals(name, key, f, points):
    """What a term's residuals are, [N, k]."""
    if key == "interior":
        return reference_interior(name, f, points)[:, None]
    if points.ndim == 2:
        return (f(points) - prescribed(name, points))[:, None]
    lower, upper = points[:, 0], points[:, 1]
    orders = range(1, {"allen_cahn": 2, "kdv": 3}[name])
    jumps = [f(upper) - f(lower), *(derivative(f, upper, 0, n) - derivative(f, lower, 0, n) for n in orders)]
    return np.stack(jumps, 1)


@pytest.mark.parametrize(("name", "hard"), CASES)
def test_residuals_are_those_of_the_equation(name, hard):
    problem, model = made(name, hard)
    f, data = as_function(model), problem.load().train
    for (inputs, targets), (key, points, _, scale) in zip(data, terms_of(data), strict=True):
        found = (problem.forward(model, inputs) - targets) / scale
        expected = reference_residuals(name, key, f, points.numpy())
        assert float(scale) == pytest.approx(len(points) ** -0.5)
        tolerance = PRECISE * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in PLACES if name.startswith(("helm", "pois", "heat"))])
def test_known_solutions_satisfy_the_equation(name):
    problem, _ = made(name)
    splits = problem.load()
    for key, points, _, _ in terms_of(splits.train):
        residuals = reference_residuals(name, key, lambda p: exact(name, p), points.numpy())
        # Sixth derivatives are up to (4 pi)^6 = 4e6; times h^4 / 90.
        np.testing.assert_allclose(residuals, 0, atol=1e-5)
    ((key, points, targets, scale),) = terms_of(splits.test)
    assert key == "solution"
    np.testing.assert_allclose((targets / scale)[:, 0].numpy(), exact(name, points.numpy()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", HARD)
def test_hard_conditions_hold_for_any_weights(name):
    soft, _ = made(name)
    problem, model = made(name, hard=True)
    keys = {key for key, *_ in terms_of(problem.load().train)}
    assert keys == {"interior", *(["initial"] if name == "allen_cahn" else [])}
    for inputs, targets in soft.load().train:
        if keys.isdisjoint(inputs):
            residuals = (soft.forward(model, inputs) - targets) / inputs["scale"]
            # Nothing but rounding; sin(pi) is 1e-16 beside third derivatives of some hundred.
            torch.testing.assert_close(residuals, torch.zeros_like(residuals), rtol=0, atol=1e-12)
    interior = next(terms_of(problem.load().train))[1]
    assert float(model(interior).detach().std()) > 0.01


def differences(problem, model, data, h=1e-5):
    """The Jacobian of all residuals by central differences, [R, P]."""
    theta = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    columns = []
    for unit in torch.eye(len(theta)):
        values = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(theta + sign * h * unit, model.parameters())
            values.append(torch.cat([problem.forward(model, inputs).detach().flatten() for inputs, _ in data]))
        columns.append((values[0] - values[1]) / (2 * h))
    nn.utils.vector_to_parameters(theta, model.parameters())
    return torch.stack(columns, 1)


@pytest.mark.parametrize(("name", "hard"), CASES)
def test_rows_are_followed_and_make_the_gauss_newton_matrix(name, hard, monkeypatch):
    problem, model = made(name, hard, width=3)
    data = problem.load().train
    jacobian = differences(problem, model, data)

    def refuse(*args):
        raise AssertionError("rows are not followed")

    for other in ("pull_examples", "pull_whole"):
        monkeypatch.setattr(chunk_rows, other, refuse)
    lin = linearize(problem.objective(model, data))
    rows = lin.rows()
    # The loss is a sum of squares, with Hessian 2. Differences err by 1e-10 of third derivatives and 1e-15 / 1e-5.
    torch.testing.assert_close(rows, 2**0.5 * jacobian, rtol=0, atol=1e-7 * float(jacobian.abs().max()))
    dense = torch.stack([lin.matvec(unit) for unit in torch.eye(rows.shape[1])])
    torch.testing.assert_close(rows.T @ rows, dense, rtol=0, atol=1e-12 * float(dense.abs().max()))
    torch.testing.assert_close(rows.T @ lin.residual(), lin.gradient, rtol=0, atol=1e-12 * float(dense.abs().max()))


@pytest.mark.parametrize(("name", "hard"), CASES)
def test_gauss_newton_lowers_the_loss(name, hard):
    problem, model = made(name, hard, width=6)
    objective = problem.objective(model, problem.batch(problem.load().train))
    optimizer = GaussNewton(model.parameters())
    losses = [float(optimizer.step(objective)) for _ in range(6)] + [float(objective.value())]
    assert all(after <= before for before, after in itertools.pairwise(losses))  # a step may be rejected at first
    assert losses[-1] < 0.95 * losses[0]


def test_a_constrained_network_is_traced():
    problem, model = made("kdv", hard=True)
    objective = problem.objective(model, problem.load().train)
    kept, traced = (linearize(objective, method=method) for method in ("double_backward", "traced"))
    assert traced.method == "traced"
    v = torch.linspace(-1, 1, kept.space.size)
    expected = kept.matvec(v)
    torch.testing.assert_close(traced.matvec(v), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_the_error_is_measured_where_the_solution_is_known():
    problem, model = made("poisson2d")
    found = Evaluator(problem, model, problem.load())(model.state_dict())
    assert {key for key in found if key.endswith("error")} == {"test_relative_l2_error"}
    points = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0))
    u = exact("poisson2d", points.numpy())
    error = np.linalg.norm(as_function(model)(points.numpy()) - u) / np.linalg.norm(u)
    assert found["test_relative_l2_error"] == pytest.approx(error, rel=0.05)  # of 4,000 random points
    assert found["valid_loss"] != found["train_loss"]
