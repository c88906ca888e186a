"""The physics-informed problems on a box: residuals against differences in NumPy, conditions, points, rows."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from latephase import GaussNewton, problems
from latephase.curvature import linearize
from latephase.curvature.rows import chunk_rows
from latephase.problems import ProblemError
from latephase.study.performing.evaluate import Evaluator

PLACES = {
    **dict.fromkeys(("burgers", "allen_cahn", "kdv", "heat1d"), 1),
    **{"helmholtz": 2, "poisson2d": 2, "poisson5d": 5, "poisson10d": 10, "heat4d": 4},
}
HARD = ("burgers", "allen_cahn", "kdv", "helmholtz", "poisson2d")
CASES = [*((name, False) for name in PLACES), *((name, True) for name in HARD)]
WIDE = ("burgers", "allen_cahn", "kdv", "helmholtz")
"""Those on -1 <= x <= 1; the others are on 0 <= x <= 1."""
TIMED = ("burgers", "allen_cahn", "kdv", "heat1d", "heat4d")

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(name, hard=False, width=4, points=40):
    """A problem of a narrow network, and the network with biases that are not zero."""
    problem = problems.get(f"pinn_{name}", width=width, points=points, **({"hard": True} if hard else {}))
    torch.manual_seed(0)
    model = problem.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return problem, model


def as_function(model):
    """A module as a function of points [N, d] in NumPy -> [N]."""

    def f(points):
        with torch.no_grad():
            return model(torch.from_numpy(points))[:, 0].numpy()

    return f


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


def exact(name, points):
    """Known solutions, [N]."""
    x = points
    return {
        "helmholtz": lambda: np.sin(np.pi * x[:, 0]) * np.sin(4 * np.pi * x[:, 1]),
        "poisson2d": lambda: np.sin(np.pi * x[:, 0]) * np.sin(np.pi * x[:, 1]),
        "poisson5d": lambda: np.cos(np.pi * x).sum(1),
        "poisson10d": lambda: sum(x[:, i] * x[:, i + 1] for i in range(0, 10, 2)),
        "heat1d": lambda: np.exp(-(np.pi**2) * x[:, 1] / 4) * np.sin(np.pi * x[:, 0]),
        "heat4d": lambda: np.exp(-x[:, 4]) * np.sin(2 * x[:, :4]).sum(1),
    }[name]()


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


def terms_of(data):
    """(key, points, targets, scale) of each term."""
    for inputs, targets in data:
        ((key, points),) = ((key, leaf) for key, leaf in inputs.items() if key != "scale")
        yield key, points, targets, inputs["scale"]


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


@pytest.mark.parametrize("name", PLACES)
def test_points_lie_where_the_condition_holds(name):
    problem, _ = made(name, points=400)
    splits, lowest, places = problem.load(), -1.0 if name in WIDE else 0.0, PLACES[name]
    for data in (splits.train, splits.valid):
        found = {key: points for key, points, *_ in terms_of(data)}
        assert list(found) == ["interior", *(["initial"] if name in TIMED else []), "boundary"]
        assert [len(points) for points in found.values()] == [400] + [50] * (len(found) - 1)
        inside, flat = found["interior"], [points.flatten(0, -2) for points in found.values()]
        assert all((p[:, :places] >= lowest).all() and (p >= -1).all() and (p <= 1).all() for p in flat)
        # Each coordinate is spread evenly: deciles have a tenth of the points each.
        sides = [lowest] * places + [0.0] * (name in TIMED)
        shares = torch.stack([torch.histc(x, 10, low, 1.0) for x, low in zip(inside.T, sides, strict=True)])
        torch.testing.assert_close(shares, torch.full_like(shares, 40.0), rtol=0, atol=3.0)
        if name in TIMED:
            assert (found["initial"][:, -1] == 0).all()
        if name in ("allen_cahn", "kdv"):
            assert (found["boundary"][:, :, 0] == torch.tensor([-1.0, 1.0])).all()
            assert torch.equal(*(found["boundary"][:, side, 1] for side in (0, 1)))
        else:
            on = torch.stack([found["boundary"][:, :places] == side for side in (lowest, 1.0)])
            assert (on.sum((0, 2)) == 1).all()
            assert (on.sum(1) >= 50 // (2 * places)).all()  # as many on each face
    train, valid = (next(terms_of(data))[1] for data in (splits.train, splits.valid))
    assert (torch.cdist(train, valid) > 0).all()


@pytest.mark.parametrize("name", [*PLACES, "convection", "reaction", "wave"])
def test_fresh_points_come_from_the_generator(name):
    problem = made(name)[0] if name in PLACES else problems.get(f"pinn_{name}", width=4)
    random = torch.Generator()
    state, train = torch.get_rng_state(), problem.load().train
    draws = [
        list(terms_of(each.redraw(random.manual_seed(seed))))
        for each, seed in ((problem, 5), (pickle.loads(pickle.dumps(problem)), 5), (problem, 6))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    for kept, first, again, other in zip(terms_of(train), *draws, strict=True):
        assert kept[0] == first[0]
        for a, b, c in zip(first[1:], again[1:], kept[1:], strict=True):
            assert torch.equal(a, b)
            assert (a.shape, a.dtype) == (c.shape, c.dtype)
        if first[0] == "interior":
            assert not torch.equal(first[1], other[1])
            assert not torch.equal(first[1], kept[1])
    following = problem.redraw(random)  # the generator has moved on
    assert not torch.equal(next(terms_of(following))[1], draws[2][0][1])


@pytest.mark.parametrize("name", [*PLACES, "convection", "reaction", "wave"])
def test_data_has_the_default_dtype(name):
    problem = made(name)[0] if name in PLACES else problems.get(f"pinn_{name}", width=4)
    wide = problem.load()
    fresh = problem.redraw(torch.Generator().manual_seed(1))
    torch.set_default_dtype(torch.float32)
    narrow = problem.load()
    rounded = problem.redraw(torch.Generator().manual_seed(1))
    for high, low in ((wide.train, narrow.train), (wide.test, narrow.test), (fresh, rounded)):
        for a, b in zip(terms_of(high), terms_of(low), strict=True):
            for exactly, nearly in zip(a[1:3], b[1:3], strict=True):
                assert (exactly.dtype, nearly.dtype) == (torch.float64, torch.float32)
                assert torch.equal(exactly.float(), nearly)
    assert {parameter.dtype for parameter in problem.model().parameters()} == {torch.float32}


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


def test_published_sizes():
    sizes = {
        ("burgers", 20, 4): 1_341, ("allen_cahn", 30, 3): 1_981, ("poisson5d", 64, 1): 449, ("poisson2d", 32, 2): 1_185,
    }  # fmt: skip
    for (name, width, depth), size in sizes.items():
        problem = problems.get(f"pinn_{name}", width=width, depth=depth)
        assert sum(parameter.numel() for parameter in problem.model().parameters()) == size
        assert f"{size:,} parameters" in problem.description
    hard = problems.get("pinn_allen_cahn", hard=True)
    assert sum(parameter.numel() for parameter in hard.model().parameters()) == 2_011


@pytest.mark.parametrize("option", [{"width": 0}, {"depth": 0}, {"points": 7}, {"points": 100.0}])
def test_sizes_that_are_refused(option):
    ((name, value),) = option.items()
    with pytest.raises(ProblemError, match=rf"{name} must be an integer of at least \d, got {value}"):
        problems.get("pinn_burgers", **option)
    with pytest.raises(ProblemError, match="has no option 'hard'"):
        problems.get("pinn_poisson5d", hard=True)
