"""Physics-informed problems against finite differences, which share no derivative with the library."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from latephase import CG, HessianFree
from latephase.curvature import linearize
from latephase.problems.pinn import Convection, Reaction, Wave, pinn_convection, pinn_reaction, pinn_wave

PROBLEMS = [pinn_convection, pinn_reaction, pinn_wave]
CUT = (slice(24), slice(9), slice(7))
"""Rows of interior, initial and boundary batch in tests with dense matrices."""


def double(data):
    return tree_map(lambda leaf: leaf.double() if isinstance(leaf, torch.Tensor) else leaf, data)


def cut(data):
    return [
        ({key: leaf[rows] if leaf.dim() else leaf for key, leaf in inputs.items()}, targets[rows])
        for (inputs, targets), rows in zip(data, CUT, strict=True)
    ]


def small(make, width=3, **options):
    """A problem with a narrow network in float64, whose biases are not zero, and its training data."""
    problem = make(width=width, **options)
    torch.manual_seed(0)
    model = problem.model().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return problem, model, double(problem.load().train)


def first(f, x, t, along, h=1e-4):
    dx, dt = (h, 0.0) if along == "x" else (0.0, h)
    return (f(x + dx, t + dt) - f(x - dx, t - dt)) / (2 * h)


def second(f, x, t, along, h=3e-4):
    dx, dt = (h, 0.0) if along == "x" else (0.0, h)
    return (f(x + dx, t + dt) - 2 * f(x, t) + f(x - dx, t - dt)) / h**2


def reference_residuals(make, f, points, coefficient=None):
    """Residuals by central differences of f(x, t), before any mean: of interior, initial condition and ends."""
    (x, t), (x0, t0) = points["interior"].T, points["initial"].T
    (low_x, low_t), (high_x, high_t) = points["boundary"][:, 0].T, points["boundary"][:, 1].T
    if make is pinn_convection:
        beta = coefficient or 40.0
        interior = first(f, x, t, "t") + beta * first(f, x, t, "x")
        initial = [f(x0, t0) - np.sin(x0)]
    elif make is pinn_reaction:
        rho = coefficient or 5.0
        interior = first(f, x, t, "t") - rho * f(x, t) * (1 - f(x, t))
        initial = [f(x0, t0) - np.exp(-((x0 - np.pi) ** 2) / (2 * (np.pi / 4) ** 2))]
    else:
        beta = coefficient or 5.0
        interior = second(f, x, t, "t") - 4 * second(f, x, t, "x")
        start = np.sin(np.pi * x0) + 0.5 * np.sin(beta * np.pi * x0)
        return interior, [f(x0, t0) - start, first(f, x0, t0, "t")], [f(low_x, low_t), f(high_x, high_t)]
    return interior, initial, [f(high_x, high_t) - f(low_x, low_t)]


def reference_loss(make, f, points, coefficient=None):
    interior, initial, ends = reference_residuals(make, f, points, coefficient)
    return sum(np.mean(part**2) for part in (interior, *initial, *ends))


def points_of(data):
    return {key: leaf.double().numpy() for inputs, _ in data for key, leaf in inputs.items() if key != "scale"}


def as_function(model):
    """A module as f(x, t) on numpy arrays."""

    def f(x, t):
        with torch.no_grad():
            points = np.stack(np.broadcast_arrays(x, t), axis=1)
            return model(torch.from_numpy(points).to(next(model.parameters()).dtype))[:, 0].double().numpy()

    return f


class Exact(nn.Module):
    """The exact solution in torch, times a parameter that is one."""

    def __init__(self, equation):
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.equation = equation

    def forward(self, points):
        x, t = points[:, :1], points[:, 1:]
        equation = self.equation
        if isinstance(equation, Convection):
            u = torch.sin(x - equation.beta * t)
        elif isinstance(equation, Reaction):
            start = torch.exp(-8 * ((x - torch.pi) / torch.pi) ** 2)
            u = start / (start + (1 - start) * torch.exp(-equation.rho * t))
        else:
            b = equation.beta
            u = torch.sin(torch.pi * x) * torch.cos(2 * torch.pi * t)
            u = u + 0.5 * torch.sin(b * torch.pi * x) * torch.cos(2 * b * torch.pi * t)
        return self.one * u


@pytest.mark.parametrize(
    ("make", "options", "equation"),
    [
        (pinn_convection, {}, Convection(40.0)),
        (pinn_convection, {"beta": 3.0}, Convection(3.0)),
        (pinn_reaction, {"rho": 2.0}, Reaction(2.0)),
        (pinn_reaction, {}, Reaction(5.0)),
        (pinn_wave, {}, Wave(5.0)),
        (pinn_wave, {"beta": 3.0}, Wave(3.0)),
    ],
)
def test_exact_solution_has_no_residual(make, options, equation):
    problem = make(**options)
    splits = problem.load()
    coefficient = next(iter(options.values()), None)
    # Differences err by h^2 / 12 of fourth derivatives, for the fast wave 7.5e-9 * (0.5 (10 pi)^4 + 4 * 0.5 (5 pi)^4) =
    # 5e-3, squared; where the loss has a first derivative, by less.
    assert reference_loss(make, equation.solution, points_of(splits.train), coefficient) < 1e-4
    # Through forward nothing is cut off: what is left is the rounding of the points to float32, 2e-7 at 2 pi, squared.
    model = Exact(equation)
    assert float(problem.objective(model, double(splits.train)).value()) < 1e-12
    for part in (splits.valid, splits.test):
        ((inputs, targets),) = double(part)
        (metric,) = problem.metrics
        # The same rounding, times slopes up to 40.
        assert metric.value(metric.sums(problem.forward(model, inputs).detach(), targets)) < 1e-5


@pytest.mark.parametrize("make", PROBLEMS)
def test_points(make):
    splits = make().load()
    points = points_of(splits.train)
    extent = 1.0 if make is pinn_wave else 2 * np.pi
    x, t = np.linspace(0, extent, 257), np.linspace(0, 1, 101)
    places = np.rint(points["interior"] / [x[1], t[1]]).astype(int)
    np.testing.assert_allclose(points["interior"], np.stack([x[places[:, 0]], t[places[:, 1]]], 1), atol=1e-6)
    assert len({tuple(place) for place in places}) == 10_000
    assert (places.min(0) == 1).all()
    assert (places.max(0) == [255, 100]).all()
    np.testing.assert_allclose(points["initial"], np.stack([x, 0 * x], 1), atol=1e-6)
    for side, end in enumerate((0.0, extent)):
        np.testing.assert_allclose(points["boundary"][:, side], np.stack([0 * t + end, t], 1), atol=1e-6)
    assert [len(targets) for _, targets in splits.train] == [10_000, 257, 101]
    ((valid, _),), ((test, _),) = splits.valid, splits.test
    assert len(valid["solution"]) == 256 * 100
    assert len(test["solution"]) == 257 * 101
    seen = {tuple(row) for row in test["solution"].tolist()}
    assert seen.isdisjoint(map(tuple, valid["solution"].tolist()))
    assert seen.issuperset(map(tuple, points["interior"].tolist()))
    again = pickle.loads(pickle.dumps(make())).load()
    assert torch.equal(again.train[0][0]["interior"], splits.train[0][0]["interior"])


def after_adam(make, width, steps):
    problem = make(width=width)
    torch.manual_seed(1)
    model = problem.model().double()
    splits = problem.load()
    objective = problem.objective(model, double(splits.train))
    optimizer = problem.training.start(model.parameters())
    for _ in range(steps):
        optimizer.step(objective)
    return problem, model, splits


def check_against_differences(make, problem, model, splits):
    f = as_function(model)
    loss = float(problem.objective(model, double(splits.train)).value())
    # Central differences err by h^2 of a derivative two orders higher, 1e-8 times a moderate number here; points and
    # targets are rounded to float32 in both.
    assert loss == pytest.approx(reference_loss(make, f, points_of(splits.train)), rel=1e-4)
    ((inputs, targets),) = double(splits.test)
    with torch.no_grad():
        outputs = problem.forward(model, inputs)
    (metric,) = problem.metrics
    x, t = inputs["solution"].numpy().T
    exact = problem.forward.keywords["equation"].solution(x, t)
    error = np.linalg.norm(f(x, t) - exact) / np.linalg.norm(exact)
    assert metric.value(metric.sums(outputs, targets)) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("make", PROBLEMS)
def test_loss_and_error_after_some_training(make):
    check_against_differences(make, *after_adam(make, width=12, steps=20))


@pytest.mark.slow
@pytest.mark.parametrize("make", PROBLEMS)
def test_loss_and_error_after_some_training_at_full_width(make):
    check_against_differences(make, *after_adam(make, width=200, steps=15))


@pytest.mark.parametrize("make", PROBLEMS)
def test_forward_needs_no_gradient_mode(make):
    problem, model, data = small(make)
    objective = problem.objective(model, cut(data))
    with torch.no_grad():
        value = objective.value()
    assert value == objective.value()
    assert all(parameter.grad is None for parameter in model.parameters())


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).clone()


def columns(model, function, h):
    """The Jacobian of a function of the parameters, by central differences: [len(function), P]."""
    theta = flat(model.parameters())
    result = []
    for unit in torch.eye(len(theta), dtype=torch.float64):
        values = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(theta + sign * h * unit, model.parameters())
            values.append(function())
        result.append((values[0] - values[1]) / (2 * h))
    nn.utils.vector_to_parameters(theta, model.parameters())
    return torch.stack(result, 1)


@pytest.mark.parametrize(
    ("make", "method"),
    [*((make, "double_backward") for make in PROBLEMS), (pinn_reaction, "traced"), (pinn_wave, "traced")],
)
def test_curvature_products_against_differences(make, method):
    # A moderate coefficient, so that the three parts of the loss have a comparable share in the matrices.
    options = {} if make is pinn_reaction else {"beta": 2.0}
    problem, model, data = small(make, **options)
    data = cut(data)
    objective = problem.objective(model, data)

    def gradient():
        objective()
        return flat(parameter.grad for parameter in model.parameters())

    def residuals():
        return torch.cat([(problem.forward(model, x) - y).detach().flatten() for x, y in data])

    j = columns(model, residuals, h=1e-5)
    slope = columns(model, lambda: objective.value()[None], h=1e-5)[0]
    expected = {"ggn": 2 * j.T @ j, "hessian": columns(model, gradient, h=1e-5)}
    for curvature, matrix in expected.items():
        lin = linearize(objective, curvature, method=method)
        dense = torch.stack([lin.matvec(unit) for unit in torch.eye(len(matrix), dtype=torch.float64)])
        assert lin.method == method
        # Differences err by 1e-10 of third derivatives, and by rounding of 1e-15 / 1e-5 of the values.
        torch.testing.assert_close(dense, matrix, rtol=0, atol=1e-7 * float(matrix.abs().max()))
        torch.testing.assert_close(lin.gradient, slope, rtol=0, atol=1e-7 * float(slope.abs().max()))
    assert float((expected["ggn"] - expected["hessian"]).abs().max()) > 1e-2 * float(expected["ggn"].abs().max())


@pytest.mark.parametrize("make", PROBLEMS)
def test_microbatches_are_the_same_function(make):
    problem, model, data = small(make, width=8)
    whole = linearize(problem.objective(model, data))
    parts = linearize(problem.objective(model, data, microbatch_size=64))
    v = torch.randn(whole.space.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # The same sums in another order: 1e-16 for each of some 10,000 terms.
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-11, atol=0)
    for a, b in ((parts.gradient, whole.gradient), (parts.matvec(v), whole.matvec(v))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11 * float(b.abs().max()))


@pytest.mark.parametrize("make", PROBLEMS)
def test_hessian_free_steps_lower_the_loss(make):
    problem = make(width=10)
    torch.manual_seed(0)
    model = problem.model()
    objective = problem.objective(model, problem.batch(problem.load().train))
    optimizer = HessianFree(model.parameters(), solver=CG(max_iter=20))
    losses = [float(optimizer.step(objective)) for _ in range(3)] + [float(objective.value())]
    assert all(after < before for before, after in itertools.pairwise(losses))


@pytest.mark.parametrize("make", PROBLEMS)
def test_fewer_points_are_as_many_and_some_of_the_grid(make):
    whole, few = make(), make(points=40)
    assert "at 40 points" in few.description
    inside, drawn = (problem.load().train[0][0]["interior"] for problem in (whole, few))
    assert drawn.shape == (40, 2)
    redrawn = few.redraw(torch.Generator().manual_seed(0))
    assert redrawn[0][0]["interior"].shape == (40, 2)
    assert float(redrawn[0][0]["scale"]) == pytest.approx(40**-0.5, rel=1e-15)
    assert set(map(tuple, inside.tolist())) & set(map(tuple, drawn.tolist()))
    for wrong in (0, 25_501):
        with pytest.raises(ValueError, match=r"points must be from 1 to 25,500"):
            make(points=wrong)
