"""`minimize_residuals` on problems whose solution is known, beside NumPy's and SciPy's answers, and on bad input."""

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

import latephase
from latephase import Fixed, LevenbergMarquardt, ResidualsResult, minimize_residuals

T = np.linspace(0.0, 4.0, 30)
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.02 * np.cos(20 * T)


def decay(x):
    """Three unknowns, thirty residuals; of arrays or tensors."""
    if isinstance(x, torch.Tensor):
        return x[0] * (-x[1] * torch.from_numpy(T)).exp() + x[2] - torch.from_numpy(Y)
    return x[0] * np.exp(-x[1] * T) + x[2] - Y


def decay_jac(x):
    e = np.exp(-x[1] * T)
    return np.stack([e, -x[0] * T * e, np.ones_like(T)], axis=1)


def rosenbrock(x):
    stack = torch.stack if isinstance(x, torch.Tensor) else np.stack
    return stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def powell(x):
    """Powell's singular function: J at the solution, 0, has rank two."""
    terms = [x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3]), (x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2]
    return np.stack(terms)


START = [1.0, 1.0, 0.0]


# ---------------------------------------------------------------------------------------------- known solutions


@pytest.mark.parametrize("start", [[-1.2, 1.0], [0.0, 0.0], [100.0, -50.0]])
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_rosenbrock_as_residuals(start, kind):
    found = minimize_residuals(rosenbrock, kind(start))
    assert found.success
    assert found.cost < 1e-20
    np.testing.assert_allclose(np.asarray(found.x), [1.0, 1.0], rtol=1e-9)


def test_a_singular_solution_is_approached():
    found = minimize_residuals(powell, [3.0, -1.0, 0.0, 1.0])
    assert found.success
    assert found.cost < 1e-12  # of 107 at the start; convergence is linear there
    assert np.abs(found.x).max() < 1e-2


@pytest.mark.parametrize("how", ["differences", "jac", "torch", "torch rows"])
def test_the_minimum_is_scipys(how):
    oracle = least_squares(decay, START, jac=decay_jac, method="lm", ftol=1e-15, xtol=1e-15, gtol=1e-15)
    if how == "torch":
        found = minimize_residuals(decay, torch.tensor(START, dtype=torch.float64))
    elif how == "torch rows":
        jac = torch.func.jacrev(decay)
        found = minimize_residuals(decay, torch.tensor(START, dtype=torch.float64), jac=jac)
    else:
        found = minimize_residuals(decay, START, jac=decay_jac if how == "jac" else None)
    assert found.status in (1, 2, 3, 4)
    # a cost within 1e-8 of the lowest is what the default ftol asks for; x is then within the root of it
    assert found.cost == pytest.approx(oracle.cost, rel=1e-8)
    np.testing.assert_allclose(np.asarray(found.x), oracle.x, rtol=1e-4)


def test_tight_tolerances_give_the_unknowns_to_eight_digits():
    oracle = least_squares(decay, START, jac=decay_jac, method="lm", ftol=1e-15, xtol=1e-15, gtol=1e-15)
    found = minimize_residuals(decay, START, jac=decay_jac, ftol=0, xtol=1e-12, gtol=1e-12)
    np.testing.assert_allclose(found.x, oracle.x, rtol=1e-8)


def test_units_of_the_unknowns_do_not_matter():
    units = np.array([1e12, 1e-9, 1e3])
    found = minimize_residuals(lambda z: decay(z * units), START / units)
    plain = minimize_residuals(decay, START)
    np.testing.assert_allclose(found.x * units, plain.x, rtol=1e-6)  # powers of ten are not exact
    assert abs(found.nfev - plain.nfev) <= 4


def test_more_unknowns_than_residuals():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 7)), rng.standard_normal(3)
    found = minimize_residuals(lambda x: a @ x - b, np.zeros(7))
    assert found.success
    assert found.cost < 1e-18
    jacobian = torch.from_numpy(a)
    rows = minimize_residuals(lambda x: jacobian @ x - torch.from_numpy(b), torch.zeros(7, dtype=torch.float64))
    assert rows.cost < 1e-18
    torch.testing.assert_close(rows.jac, jacobian)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    rows=st.integers(1, 8), columns=st.integers(1, 6), seed=st.integers(0, 10**6), exponents=st.integers(0, 6),
    tensors=st.booleans(),
)  # fmt: skip
def test_linear_problems_are_those_of_lstsq(rows, columns, seed, exponents, tensors):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-exponents, exponents + 1, columns)
    b, start = rng.standard_normal(rows), rng.standard_normal(columns)
    if tensors:
        wide = torch.from_numpy(a)
        found = minimize_residuals(lambda x: wide @ x - torch.from_numpy(b), torch.from_numpy(start))
    else:
        found = minimize_residuals(lambda x: a @ x - b, start, jac=lambda x: a)
    best = np.linalg.lstsq(a / np.linalg.norm(a, axis=0), b, rcond=None)[0]
    least = float(np.sum((a / np.linalg.norm(a, axis=0) @ best - b) ** 2)) / 2
    first = float(np.sum((a @ start - b) ** 2)) / 2
    assert found.success
    # ftol 1e-8 of the cost itself, and what rounding leaves of the start where the residuals vanish
    assert found.cost <= least * (1 + 1e-7) + 1e-14 * first


# ------------------------------------------------------------------------------------------------------- result


def test_the_result_is_consistent_and_has_scipys_names():
    found = minimize_residuals(decay, START, jac=decay_jac)
    assert isinstance(found, ResidualsResult)
    oracle = least_squares(decay, START, jac=decay_jac)
    for name in ("x", "cost", "fun", "jac", "grad", "optimality", "status", "message", "success", "nfev", "njev"):
        assert hasattr(oracle, name)
        ours = getattr(found, name)
        assert np.shape(ours) == np.shape(getattr(oracle, name)), name
    np.testing.assert_array_equal(found.fun, decay(found.x))
    np.testing.assert_allclose(found.cost, 0.5 * np.sum(found.fun**2), rtol=1e-14)
    np.testing.assert_array_equal(found.jac, decay_jac(found.x))
    np.testing.assert_allclose(found.grad, found.jac.T @ found.fun, rtol=0, atol=1e-13)  # a sum of thirty near 1
    assert found.optimality == np.abs(found.grad).max()
    assert "cost=" in repr(found)


@pytest.mark.parametrize("given", [START, np.array(START), np.array(START, np.float32), np.array([1, 1, 0])])
def test_numpy_in_numpy_out(given):
    seen = []

    def function(x):
        seen.append((type(x), x.dtype))
        return decay(x)

    found = minimize_residuals(function, given)
    assert set(seen) == {(np.ndarray, np.dtype(float))}
    for array in (found.fun, found.jac, found.grad):
        assert array.dtype == np.float64
    assert found.x.dtype == (np.float32 if getattr(given, "dtype", None) == np.float32 else np.float64)
    np.testing.assert_allclose(found.x, minimize_residuals(decay, START).x, rtol=1e-7 if len(seen) else 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_torch_in_torch_out(dtype):
    seen = []

    def function(x):
        seen.append(x.dtype)
        return decay(x)

    start = torch.tensor([1, 1, 0], dtype=dtype)
    found = minimize_residuals(function, start)
    assert set(seen) == {torch.float64}
    assert found.x.dtype == (torch.float32 if dtype == torch.float32 else torch.float64)
    assert all(isinstance(each, torch.Tensor) for each in (found.x, found.fun, found.jac, found.grad))
    assert not found.x.requires_grad
    assert start.tolist() == [1, 1, 0]


def test_parameters_that_require_gradients_may_be_the_start():
    found = minimize_residuals(decay, torch.tensor(START, dtype=torch.float64, requires_grad=True))
    assert found.success
    assert not found.jac.requires_grad


def test_residuals_in_float32_are_warned_of_and_still_minimised():
    with pytest.warns(UserWarning, match="residuals with 7 digits"):
        found = minimize_residuals(lambda x: decay(x).astype(np.float32), START)
    assert found.success
    best = minimize_residuals(decay, START)
    assert found.cost == pytest.approx(best.cost, rel=1e-4)  # float32 residuals of a hundredth of the data


def test_calls_are_counted():
    calls = {"function": 0, "jac": 0}

    def function(x):
        calls["function"] += 1
        return decay(x)

    def jac(x):
        calls["jac"] += 1
        return decay_jac(x)

    found = minimize_residuals(function, START, jac=jac)
    assert calls == {"function": found.nfev, "jac": found.njev}
    calls["function"] = 0
    found = minimize_residuals(function, START)
    assert calls["function"] == found.nfev + 2 * len(START) * found.njev


def test_a_function_may_write_into_its_argument():
    def function(x):
        r = decay(x)
        x[:] = math.nan
        return r

    np.testing.assert_array_equal(minimize_residuals(function, START).x, minimize_residuals(decay, START).x)


class Square(torch.autograd.Function):
    """x^2 without forward derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, slopes):
        return 2 * slopes * ctx.saved_tensors[0]


def test_an_operation_without_forward_derivatives_is_differentiated_backward():
    found = minimize_residuals(lambda x: Square.apply(x) - 2, torch.tensor([1.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(found.x, torch.full((2,), 2.0, dtype=torch.float64).sqrt())


def test_an_error_of_a_function_in_float32_says_what_it_was_given():
    layer = torch.nn.Linear(2, 3)
    with pytest.raises(RuntimeError, match="dtype") as caught:
        minimize_residuals(layer, torch.zeros(2))
    assert "given x0 in float64" in caught.value.__notes__[0]


def test_an_unknown_that_is_lost_on_the_way_is_warned_of():
    with pytest.warns(UserWarning, match="is x lost on the way") as caught:
        minimize_residuals(lambda x: torch.tensor([float(x[0]) - 1.0], dtype=torch.float64), torch.zeros(1))
    assert caught[0].filename == __file__


# ----------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_evaluations_are_limited(limit):
    found = minimize_residuals(rosenbrock, [-1.2, 1.0], max_nfev=limit)
    assert found.nfev <= limit
    assert found.status == 0
    assert not found.success
    assert "max_nfev" in found.message
    assert found.cost <= 0.5 * np.sum(rosenbrock(np.array([-1.2, 1.0])) ** 2)


def test_each_tolerance_ends_it():
    loose = {"ftol": 0, "xtol": 0, "gtol": 0}
    assert minimize_residuals(decay, START, **loose | {"gtol": 1e-3}).status == 1
    assert minimize_residuals(decay, START, **loose | {"ftol": 1e-3}).status == 2
    assert minimize_residuals(decay, START, **loose | {"xtol": 1e-3}).status == 3
    assert minimize_residuals(decay, START, **loose).success  # at the rounding of the cost


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("damping", [1e3, 1e8])
def test_a_step_that_the_damping_keeps_short_has_not_converged(distance, damping):
    best = least_squares(decay, START, jac=decay_jac, method="lm", ftol=1e-15, xtol=1e-15, gtol=1e-15)
    found = minimize_residuals(decay, best.x * (1 + distance), jac=decay_jac, damping=damping, ftol=1e-13, xtol=1e-13)
    assert found.success
    np.testing.assert_allclose(found.x, best.x, rtol=1e-7)  # the root of what rounding leaves of the cost


def test_a_start_at_the_minimum_stays():
    found = minimize_residuals(lambda x: x - 1, np.ones(2))
    assert (found.status, found.nfev, found.cost) == (1, 1, 0.0)


@pytest.mark.parametrize("factor", [-1.0, 0.0])
def test_a_wrong_jacobian_is_told(factor):
    def run():
        return minimize_residuals(decay, START, jac=lambda x: factor * decay_jac(x))

    if factor == 0:
        with pytest.warns(UserWarning, match="no residual depends on x"):
            run()
        return
    found = run()
    assert found.status == -1
    assert not found.success
    assert "is jac that of function" in found.message
    assert found.x.tolist() == START


def test_damping_may_be_a_number_or_a_part():
    for damping in (1e-6, 1.0, LevenbergMarquardt(1e-2, factors=(0.5, 2.0))):
        assert minimize_residuals(decay, START, damping=damping).success
    for damping in ("much", Fixed(1.0)):
        with pytest.raises(TypeError, match="damping must be a number or LevenbergMarquardt"):
            minimize_residuals(decay, START, damping=damping)
    with pytest.raises(ValueError, match="initial must be"):
        minimize_residuals(decay, START, damping=-1.0)
    for damping in (0.0, LevenbergMarquardt(factors=(0.5, 1.0))):
        with pytest.raises(ValueError, match="able to rise"):
            minimize_residuals(decay, START, damping=damping)


def test_an_edge_that_cannot_be_left_is_told():
    found = minimize_residuals(lambda x: np.where(x == 1.0, x, np.nan), [1.0], jac=lambda x: np.eye(1))
    assert (found.status, found.success, found.x.tolist()) == (-1, False, [1.0])
    assert "edge" in found.message


# ------------------------------------------------------------------------------------------------ trials outside


def test_a_trial_that_is_not_finite_is_rejected():
    seen = []

    def function(x):
        with np.errstate(invalid="ignore"):
            r = np.array([np.log(x[0]) + 3, 0.1 * (x[0] - 1)])
        seen.append(bool(np.isfinite(r).all()))
        return r

    found = minimize_residuals(function, [5.0], damping=1e-8)  # the first full step leads below zero
    assert not all(seen)
    assert found.success
    oracle = least_squares(function, [5.0], bounds=([1e-9], [np.inf]), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert found.cost == pytest.approx(oracle.cost, rel=1e-7)


def test_an_overflow_that_raises_is_one_too():
    found = minimize_residuals(lambda x: [math.exp(x[0]) - 2.0], [-8.0], damping=1e-12)
    assert found.cost < 1e-12
    assert found.x[0] == pytest.approx(math.log(2.0), rel=1e-6)


def test_derivatives_that_are_not_finite_reject_the_point():
    def jac(x):
        return np.array([[np.nan if x[0] < 0.1 else 1.0]])

    found = minimize_residuals(lambda x: x, [1.0], jac=jac)
    assert found.x[0] >= 0.1
    assert np.isfinite(found.jac).all()


# ---------------------------------------------------------------------------------------------------- bad input


def grown():
    calls = []

    def function(x):
        calls.append(0)
        return np.zeros(3) + x[0] if len(calls) < 4 else np.zeros(4)

    return function


BAD = {
    "a matrix": (lambda x: x, np.ones((2, 2)), ValueError, r"x0 must be of shape \[P\].*\[2, 2\]"),
    "a number": (lambda x: x, 1.0, ValueError, r"x0 must be of shape \[P\]"),
    "no unknowns": (lambda x: np.ones(3), [], ValueError, r"x0 must be of shape \[P\]"),
    "a start of nan": (lambda x: x, [1.0, math.nan], ValueError, "x0 must be finite"),
    "words": (lambda x: x, ["a"], TypeError, "x0 must be an array of real numbers"),
    "complex": (lambda x: x, [1j], TypeError, "x0 must be an array of real numbers"),
    "complex tensor": (lambda x: x, torch.ones(2, dtype=torch.complex128), TypeError, "x0 must be real"),
    "ragged": (lambda x: [[1.0], [1.0, 2.0]], [1.0], TypeError, "function must be an array of real numbers"),
    "no function": (3, [1.0], TypeError, "function must be callable"),
    "no residuals": (lambda x: x[:0], [1.0], ValueError, r"N >= 1, got \[0\]"),
    "a scalar residual": (lambda x: x.sum(), [1.0], ValueError, r"N >= 1, got \[\]"),
    "a matrix of residuals": (lambda x: np.ones((2, 2)), [1.0], ValueError, r"\[2, 2\].*ravel"),
    "nan at the start": (lambda x: np.array([1.0, math.nan]), [1.0], ValueError, "1 of 2 residuals at x0.*index 1"),
    "overflow at the start": (lambda x: 1e200 * x, [1.0], ValueError, "overflows"),
    "another number of residuals": (grown(), [1.0], ValueError, r"returned \[4\] residuals after \[3\] at x0"),
    "a list for a tensor": (lambda x: [1.0], torch.ones(1), TypeError, "got a tensor and must return one, got list"),
    "a tensor for an array": (lambda x: torch.ones(1), [1.0], TypeError, "give x0 as a tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    function, start, error, message = BAD[name]
    with pytest.raises(error, match=message):
        minimize_residuals(function, start)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bounds": ([0, 0, 0], [1, 1, 1])}, ValueError, "has no bounds.*trf.*sigmoid"),
        ({"loss": "huber"}, TypeError, "no option 'loss'.*robust"),
        ({"x_scale": "jac"}, TypeError, "no option 'x_scale'.*columns"),
        ({"nonsense": 1}, TypeError, "no option 'nonsense'$"),
        ({"jac": "3-point"}, TypeError, "jac must be a function"),
        ({"jac": lambda x: np.ones((3, 30))}, ValueError, r"jac must return shape \[30, 3\].*got \[3, 30\]"),
        ({"jac": lambda x: np.full((30, 3), np.inf)}, ValueError, "derivatives of the residuals at x0"),
        ({"ftol": -1}, ValueError, "ftol must be"),
        ({"gtol": math.nan}, ValueError, "gtol must be"),
        ({"max_nfev": 0}, ValueError, "max_nfev must be"),
        ({"max_nfev": 2.5}, ValueError, "max_nfev must be"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        minimize_residuals(decay, START, **options)


def test_bounds_that_bound_nothing_are_none():
    assert minimize_residuals(decay, START, bounds=(-np.inf, np.inf)).success
    assert minimize_residuals(decay, START, bounds=None).success


def test_the_names_are_public():
    assert {"minimize_residuals", "ResidualsResult"} <= set(latephase.__all__)


def test_the_example_of_the_docstring():
    (example,) = [
        test for test in doctest.DocTestFinder().find(minimize_residuals, "example", globs={}) if test.examples
    ]
    assert doctest.DocTestRunner().run(example).failed == 0
