"""Updates of the inverse Hessian: against the formulas in NumPy, the secant condition, conjugate gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broyden_formula import by_formula
from latephase.solve import UPDATES, correction

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def drawn(seed, size, spread=1.0, identity=False):
    """A positive definite H, a gradient, a step along -Hg, and a change of the gradient with y's > 0."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(size, size)))[0]
    inverse = np.eye(size) if identity else turn * 10 ** rng.uniform(-spread, spread, size) @ turn.T
    inverse = (inverse + inverse.T) / 2
    g = rng.normal(size=size)
    alpha = 10 ** rng.uniform(-1, 1)
    s = -alpha * inverse @ g
    y = rng.normal(size=size) * 10 ** rng.uniform(-1, 1)
    y += (abs(y @ s) + 0.1 * np.linalg.norm(y) * np.linalg.norm(s)) * 1.5 * s / (s @ s)
    return inverse, s, y, -alpha * s @ g


def corrected(inverse, s, y, curved, update="broyden", first=False):
    h = torch.from_numpy(inverse.copy())
    found = correction(torch.from_numpy(s), torch.from_numpy(y), h @ torch.from_numpy(y), curved, update, first)
    return found, found.apply_(h).numpy()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("size", [2, 5, 30])
def test_the_update_is_the_formula(size, update, first):
    for seed in range(20):
        inverse, s, y, curved = drawn(seed, size, identity=first)
        expected, tau, theta = by_formula(inverse, s, y, curved / (y @ s), update, first)
        found, h = corrected(inverse, s, y, curved, update, first)
        # Both cancel where s and Hy are nearly parallel: ten digits are left of sixteen.
        np.testing.assert_allclose(h, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
        assert (found.tau, found.theta) == (pytest.approx(tau, rel=1e-9), pytest.approx(theta, rel=1e-9, abs=1e-12))


def test_the_cases_of_the_formula_were_there():
    """Theta of both signs, and b on both sides of 1: the bounds of tau that do not follow from each other."""
    seen = set()
    for seed in range(20):
        inverse, s, y, curved = drawn(seed, 5)
        theta = by_formula(inverse, s, y, curved / (y @ s), "broyden", False)[2]
        seen |= {("theta > 0", theta > 0), ("b > 1", curved > y @ s)}
    assert len(seen) == 4


@PROPERTY
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 12),
    spread=st.floats(0, 3),
    update=st.sampled_from(UPDATES),
    first=st.booleans(),
)
def test_the_secant_condition_holds_and_h_stays_positive_definite_and_symmetric(seed, size, spread, update, first):
    inverse, s, y, curved = drawn(seed, size, spread, identity=first)
    found, h = corrected(inverse, s, y, curved, update, first)
    assert found.tau > 0
    assert np.array_equal(h, h.T)
    # H y is a sum of terms as large as |H||y|, whose rounding is what is left.
    np.testing.assert_allclose(h @ y, s, rtol=0, atol=1e-11 * np.abs(h).max() * np.linalg.norm(y) * size)
    root = np.linalg.eigvalsh(h)
    assert root[0] > -1e-12 * root[-1]
    if spread <= 1:
        assert root[0] > 0


def test_it_is_written_in_place():
    inverse, s, y, curved = drawn(0, 6)
    h = torch.from_numpy(inverse)
    found = correction(torch.from_numpy(s), torch.from_numpy(y), h @ torch.from_numpy(y), curved)
    address = h.data_ptr()
    assert found.apply_(h) is h
    assert h.data_ptr() == address


@pytest.mark.parametrize("update", UPDATES)
def test_where_all_members_are_one(update):
    """S and Hy parallel: a = 0, and (r - 1) / a has no value."""
    inverse = np.diag([1.0, 2.0, 4.0])
    y = np.array([1.0, 0.0, 0.0])
    for factor in (0.25, 1.0, 3.0):
        s = factor * inverse @ y
        found, h = corrected(inverse, s, y, float(s @ np.linalg.solve(inverse, s)), update)
        assert math.isfinite(found.theta)
        np.testing.assert_allclose(h @ y, s, rtol=1e-14, atol=1e-14)
        assert np.linalg.eigvalsh(h)[0] > 0


def test_without_the_curvature_along_s_it_is_bfgs():
    inverse, s, y, curved = drawn(3, 6)
    plain = corrected(inverse, s, y, curved, "unscaled_bfgs")[1]
    for update in UPDATES:
        found, h = corrected(inverse, s, y, None, update)
        assert (found.tau, found.theta) == (1.0, 0.0)
        assert np.array_equal(h, plain)


def test_gradients_that_say_nothing_leave_h_as_it_is():
    h, s = torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for y in (-s, torch.zeros_like(s), s * math.nan, s * math.inf, torch.tensor([3.0, 0.0, -1.0]).double(), s * 1e-200):
        assert correction(s, y, h @ y, 1.0) is None
    assert correction(s * 0, s, s, 0.0) is None
    with pytest.raises(ValueError, match="update must be one of broyden, bfgs, unscaled_bfgs; got 'dfp'"):
        correction(s, s, s, 1.0, "dfp")


def test_bfgs_with_exact_steps_takes_the_steps_of_conjugate_gradients():
    """On a quadratic, from the identity (Nocedal and Wright 2006, Theorem 6.4): it ends after P steps."""
    rng = np.random.default_rng(0)
    size = 8
    root = rng.normal(size=(size, size))
    a, b = root @ root.T / size + 0.5 * np.eye(size), rng.normal(size=size)
    x, h, expected, residual = np.zeros(size), np.eye(size), np.zeros(size), b.copy()
    direction = residual.copy()
    for _ in range(size):
        g = a @ x - b
        p = -h @ g
        s = -(g @ p) / (p @ a @ p) * p
        h = corrected(h, s, a @ s, None)[1]
        x = x + s
        step = residual @ residual / (direction @ a @ direction)
        expected, rest = expected + step * direction, residual - step * a @ direction
        direction, residual = rest + rest @ rest / (residual @ residual) * direction, rest
        np.testing.assert_allclose(x, expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(h, np.linalg.inv(a), rtol=1e-7, atol=1e-7)
