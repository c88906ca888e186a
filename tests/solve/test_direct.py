"""Damped least squares solved directly, beside the dense system in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latephase.solve import FACTORIZATIONS, SIDES, DirectSolve, LeastSquares
from latephase.solve.direct import TRIALS, gram, squared_suffices

DECAYS = ("none", "uniform", "varied")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Case:
    """A least-squares problem with everything that one may have, and its dense damped solution."""

    def __init__(self, rows: int, size: int, decay: str = "none", scaled: bool = False, residual: bool = True, seed=0):
        self.J, self.r, theta = random(rows, size, seed=seed), random(rows, seed=seed + 1), random(size, seed=seed + 2)
        self.scale: Tensor | float = random(size, seed=seed + 3).abs() + 0.5 if scaled else 1.0
        diagonal = {"uniform": 0.3 * self.scale * torch.ones(size, dtype=torch.float64), "varied": theta.square() + 0.1}
        self.D = diagonal.get(decay)
        rest = None if self.D is None else self.D * theta
        self.g = self.J.T @ self.r + (0.0 if rest is None else rest)
        own = (self.r, rest) if residual else (None, None)
        self.model = LeastSquares(self.g, self.J, None, *own, self.D, self.scale)

    def matrix(self, damping: float) -> Tensor:
        ridge = damping * self.scale * torch.ones(len(self.g), dtype=torch.float64)
        return self.J.T @ self.J + torch.diag(ridge if self.D is None else ridge + self.D)

    def expected(self, damping: float, start: Tensor | None = None) -> Tensor:
        """The minimiser, or with a start its difference from there, the damping pulling to the start."""
        slope = self.g if start is None else self.g + self.matrix(0.0) @ start
        return -torch.linalg.solve(self.matrix(damping), slope)


def relative(found: Tensor | None, expected: Tensor) -> float:
    assert found is not None
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_it_is_the_dense_solution(factorization, side, decay, scaled):
    """Conditions stay below 1e6, so that ten digits are left."""
    for rows, size in ((12, 25), (25, 12), (9, 9), (1, 4), (0, 3)):
        for residual in (True, False):
            case = Case(rows, size, decay, scaled, residual)
            if decay == "varied" and (side == "dual" or factorization == "svd"):
                with pytest.raises(ValueError, match="one multiple"):
                    DirectSolve(case.model, factorization, side)
                continue
            solve = DirectSolve(case.model, factorization, side)
            for damping in (1e-2, 10.0, 0.5):
                assert relative(solve.solve(damping), case.expected(damping)) < 1e-10
            start = random(size, seed=9)
            moved = DirectSolve(case.model.moved(start), factorization, side)
            assert relative(moved.solve(0.1), case.expected(0.1, start)) < 1e-10


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 9),
    size=st.integers(1, 9),
    decay=st.sampled_from(DECAYS),
    scaled=st.booleans(),
    residual=st.booleans(),
    damping=st.floats(1e-3, 1e6),
    seed=st.integers(0, 1000),
)
def test_any_problem(rows, size, decay, scaled, residual, damping, seed):
    case = Case(rows, size, decay, scaled, residual, seed)
    assert relative(DirectSolve(case.model).solve(damping), case.expected(damping)) < 1e-9


def test_the_side_is_the_smaller_one():
    assert DirectSolve(Case(5, 9).model).side == "dual"
    assert DirectSolve(Case(9, 5).model).side == "primal"
    assert DirectSolve(Case(5, 9, "varied").model).side == "primal"
    known = Case(5, 9)
    assert DirectSolve(LeastSquares(known.g, matrix=known.J.T @ known.J)).side == "primal"


@pytest.mark.parametrize("side", ["primal", "dual"])
def test_a_matrix_in_place_of_rows_and_only_its_lower_triangle(side):
    case = Case(30, 11, "varied")
    lower = (case.J.T @ case.J).tril()
    given = LeastSquares(case.g, matrix=lower + torch.full((11, 11), math.nan).triu(1), diagonal=case.D)
    for factorization in ("auto", "cholesky", "eigh"):
        assert relative(DirectSolve(given, factorization).solve(0.3), case.expected(0.3)) < 1e-10
    start = random(11, seed=4)
    plain = LeastSquares(case.g, matrix=lower, diagonal=case.D)
    assert relative(DirectSolve(plain.moved(start)).solve(0.3), case.expected(0.3, start)) < 1e-10


def test_symmetric_products_of_every_size():
    for n in (0, 1, 255, 256, 257, 600):
        a = random(n, 7, seed=n)
        torch.testing.assert_close(gram(a).tril(), (a @ a.T).tril(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factorization", FACTORIZATIONS)
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_another_right_hand_side(factorization, shape):
    case, other = Case(*shape), random(shape[0], seed=7)
    found = DirectSolve(case.model, factorization).solve(0.2, other)
    assert relative(found, -torch.linalg.solve(case.matrix(0.2), case.J.T @ other)) < 1e-10


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_the_models_own_residual_as_another_right_hand_side(shape):
    """Without the L2 term's share of the gradient, which is no J' times anything."""
    case = Case(*shape, "uniform")
    found = DirectSolve(case.model).solve(0.2, case.model.residual)
    assert relative(found, -torch.linalg.solve(case.matrix(0.2), case.J.T @ case.r)) < 1e-10


def test_singular_values_do_without_the_squared_matrix(monkeypatch):
    def refused(a: Tensor) -> Tensor:
        raise AssertionError("the squared matrix is not needed")

    monkeypatch.setattr("latephase.solve.direct.gram", refused)
    for shape in ((12, 20), (20, 12)):
        case = Case(*shape)
        solve = DirectSolve(case.model, "svd")
        assert relative(solve.solve(0.3), case.expected(0.3)) < 1e-10
        assert solve.norm == pytest.approx(float(case.J.square().sum()), rel=1e-12)


def test_one_factorisation_serves_a_damping_and_eigenvectors_serve_many():
    case = Case(15, 40)
    solve = DirectSolve(case.model)
    for _ in range(3):
        solve.solve(0.5)
        solve.solve(0.5, random(15, seed=3))
    assert solve.counts == {"cholesky": 1, "eigh": 0, "svd": 0}
    dampings = [0.8**k for k in range(3 * TRIALS)]
    for damping in dampings:
        assert relative(solve.solve(damping), case.expected(damping)) < 1e-9
    assert solve.counts["eigh"] == 1
    assert solve.counts["cholesky"] <= TRIALS + 1


@pytest.mark.parametrize("shape", [(30, 30), (30, 50), (50, 30)])
def test_where_squares_have_no_digits_left_singular_values_are_taken(shape):
    """Singular values of 1 to 1e-9, whose squares float64 cannot hold beside 1; the residual is within their reach."""
    u, _ = torch.linalg.qr(random(shape[0], 30, seed=1))
    v, _ = torch.linalg.qr(random(shape[1], 30, seed=2))
    s = torch.logspace(0, -9, 30, dtype=torch.float64)
    J, x = u * s @ v.T, v @ random(30, seed=3)
    model = LeastSquares(-J.T @ (J @ x), J, None, -J @ x)
    solve = DirectSolve(model)
    found = solve.solve(1e-30)
    assert solve.counts == {"cholesky": 0, "eigh": 0, "svd": 1}
    assert found is not None
    # The condition 1e9 times the rounding unit is 2e-7.
    assert float((found - x).norm() / x.norm()) < 1e-6
    squared = DirectSolve(model, "eigh").solve(1e-30)
    assert squared is None or float((squared - x).norm() / x.norm()) > 1e-3


@pytest.mark.parametrize("side", ["primal", "dual"])
def test_digits_are_judged_in_the_scale_of_the_damping(side):
    """J and the root of S times the same number have the same solution, and the same decomposition."""
    for damping, expected in ((1e-10, "cholesky"), (1e-17, "svd")):
        plain = Case(20, 8) if side == "primal" else Case(8, 20)
        J, g, scale = 1e-8 * plain.J, 1e-8 * plain.g, 1e-16
        solve = DirectSolve(LeastSquares(g, J, None, plain.r, None, None, scale), side=side)
        assert solve.solve(damping) is not None
        assert [kind for kind, count in solve.counts.items() if count] == [expected]


def test_how_many_digits_are_enough():
    assert squared_suffices(1e-14, torch.float64)
    assert not squared_suffices(1e-15, torch.float64)
    assert squared_suffices(1e-5, torch.float32)
    assert not squared_suffices(1e-6, torch.float32)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_solution(bad):
    for factorization in FACTORIZATIONS:
        case = Case(6, 4)
        case.J[2, 1] = bad
        assert DirectSolve(case.model, factorization).solve(1.0) is None
        case = Case(6, 4)
        case.model.gradient[1] = bad
        case.r[0] = bad
        assert DirectSolve(case.model, factorization).solve(1.0) is None


def test_parameters_that_nothing_damps():
    """A scale of zero: the primal side, where the curvature alone must hold them."""
    case = Case(30, 6)
    scale = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    model = LeastSquares(case.g, case.J, None, case.r, None, None, scale)
    expected = -torch.linalg.solve(case.J.T @ case.J + torch.diag(0.7 * scale), case.g)
    assert relative(DirectSolve(model).solve(0.7), expected) < 1e-10
    assert DirectSolve(LeastSquares(case.g, case.J[:0], None, None, None, None, scale)).solve(0.7) is None
