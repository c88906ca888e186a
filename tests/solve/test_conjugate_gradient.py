"""Conjugate gradients against known solutions and SciPy, and in single and half precision."""

import numpy as np
import pytest
import torch
from cg_systems import TO_THE_END, relative, scipy_iterates, solve, symmetric, system, textbook
from torch import Tensor

from latephase.solve import CGStatus, conjugate_gradient, iteration_grid

# ---------------------------------------------------------------------------------------------------------------------
# Known solutions


@pytest.mark.parametrize("condition", [1.0001, 1e1, 1e3, 1e6])
def test_known_solution(condition):
    # |r| <= tol |b| bounds the relative error by sqrt(kappa) tol in the A-norm and by kappa tol in the Euclidean norm;
    # the factor 2 leaves room for the drift of the recursive residual (about 1e-14 |b| here, tol is 1e-12).
    tolerance = 1e-12
    matrix, solution, b = system(40, condition, seed=3)
    result = solve(matrix, b, stopping="residual", tolerance=tolerance, max_iter=5000)
    assert result.status == (CGStatus.RESIDUAL,)
    error = np.asarray(result.solution) - solution
    assert np.sqrt(error @ matrix @ error) <= 2 * np.sqrt(condition) * tolerance * np.sqrt(solution @ matrix @ solution)
    assert np.linalg.norm(error) <= 2 * condition * tolerance * np.linalg.norm(solution)


@pytest.mark.parametrize("eigenvalues", [[3.0], [1.0, 10.0], [1.0, 2.0, 5.0, 10.0]])
def test_few_distinct_eigenvalues_end_in_as_many_iterations(eigenvalues):
    matrix = symmetric(np.repeat(eigenvalues, 15), seed=5)
    b = np.random.default_rng(6).standard_normal(len(matrix))
    # 1e-10: far above rounding (1e-15 times a condition of at most 10), far below the residual one iteration earlier.
    result = solve(matrix, b, stopping="residual", tolerance=1e-10)
    assert result.iterations == (len(eigenvalues),)
    assert result.status == (CGStatus.RESIDUAL,)
    assert relative(result.solution, np.linalg.solve(matrix, b)) < 1e-9


@pytest.mark.parametrize("stopping", ["martens", "residual"])
def test_exact_convergence_is_no_failure(stopping):
    # A = 2 I: alpha = 1/2 is exact, so the residual after one iteration is exactly zero. What follows would be 0/0.
    b = np.random.default_rng(0).standard_normal(8)
    result = solve(2.0 * np.eye(8), b, stopping=stopping)
    assert torch.equal(result.solution, torch.tensor(b / 2.0))
    assert result.status[0] not in (CGStatus.NONFINITE, CGStatus.NONPOSITIVE_CURVATURE)


# ---------------------------------------------------------------------------------------------------------------------
# SciPy


@pytest.mark.parametrize("count", [1, 2, 6, 12])
@pytest.mark.parametrize("with_start", [False, True], ids=["zero", "x0"])
@pytest.mark.parametrize("with_preconditioner", [False, True], ids=["plain", "preconditioned"])
def test_iterates_equal_scipy(count, with_start, with_preconditioner):
    rng = np.random.default_rng(11)
    matrix, _, b = system(30, 20.0, seed=12)
    x0 = rng.standard_normal(30) if with_start else None
    inverse = symmetric(rng.uniform(0.5, 4.0, 30), seed=13) if with_preconditioner else None
    preconditioner = None
    if inverse is not None:
        tensor = torch.tensor(inverse)
        preconditioner = lambda r: tensor @ r  # noqa: E731
    result = solve(matrix, b, x0, preconditioner=preconditioner, max_iter=count, **TO_THE_END)
    expected = scipy_iterates(matrix, b, count, x0, inverse)
    assert result.iterations == (count,)
    assert result.status == (CGStatus.MAX_ITERATIONS,)
    assert [index for index in result.indices if index > 0] == iteration_grid(count)
    for index, iterate in zip(result.indices, result.iterates, strict=True):
        if index > 0:
            # Well conditioned and far from converged: rounding has not been amplified beyond 1e-8.
            assert relative(iterate, expected[index - 1]) < 1e-8


def test_textbook_oracle_equals_scipy():
    matrix, _, b = system(30, 20.0, seed=12)
    for ours, theirs in zip(textbook(matrix, b, 10)[0][1:], scipy_iterates(matrix, b, 10), strict=True):
        assert relative(ours, theirs) < 1e-10


def test_jacobi_preconditioner_removes_a_bad_scaling():
    # A = S C S with C well conditioned and S a wild diagonal scaling: Jacobi makes the number of iterations that of C.
    inner = symmetric(np.linspace(1.0, 3.0, 40), seed=1)
    scale = np.diag(np.geomspace(1.0, 1e3, 40))
    matrix = scale @ inner @ scale
    b = matrix @ np.random.default_rng(2).standard_normal(40)
    diagonal = torch.tensor(np.diag(matrix).copy())
    plain = solve(matrix, b, stopping="residual", tolerance=1e-8, max_iter=2000)
    jacobi = solve(matrix, b, stopping="residual", tolerance=1e-8, max_iter=2000, preconditioner=lambda r: r / diagonal)
    assert jacobi.iterations[0] < 40 < plain.iterations[0]
    # Residual rule: the norm is that of r itself, not of M^-1 r.
    residuals = textbook(matrix, b, 45, inverse=np.diag(1.0 / np.diag(matrix)))[2]
    first = next(i for i, residual in enumerate(residuals) if residual <= 1e-8 * np.linalg.norm(b))
    assert jacobi.iterations == (first,)


def test_identity_functions_may_return_their_argument():
    # Neither matvec nor preconditioner promises a fresh tensor.
    matrix, _, b = system(20, 10.0, seed=21)
    plain = solve(matrix, b, max_iter=8, **TO_THE_END)
    aliased = solve(matrix, b, max_iter=8, preconditioner=lambda r: r, **TO_THE_END)
    assert relative(aliased.solution, plain.solution) < 1e-12
    identity = conjugate_gradient(lambda v: v, torch.tensor(b), stopping="residual", tolerance=1e-12)
    assert torch.equal(identity.solution, torch.tensor(b))


# ---------------------------------------------------------------------------------------------------------------------
# Precision


def test_float32_stays_float32():
    matrix, solution, b = system(50, 100.0, seed=110)
    seen: set[torch.dtype] = set()

    def matvec(v: Tensor) -> Tensor:
        seen.add(v.dtype)
        return torch.tensor(matrix, dtype=torch.float32) @ v

    result = conjugate_gradient(matvec, torch.tensor(b, dtype=torch.float32), stopping="residual", tolerance=1e-5)
    assert seen == {torch.float32}
    assert result.solution.dtype == torch.float32
    # kappa * tol = 1e-3, and as much again for rounding (kappa * eps = 1e-5).
    assert relative(result.solution, solution) < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_solved_in_float32(dtype):
    matrix, _, b = system(20, 10.0, seed=111)
    seen: set[torch.dtype] = set()

    def matvec(v: Tensor) -> Tensor:
        seen.add(v.dtype)
        return torch.tensor(matrix, dtype=torch.float32) @ v

    half = torch.tensor(b).to(dtype)
    result = conjugate_gradient(matvec, half, torch.zeros(20, dtype=dtype), stopping="residual", tolerance=1e-5)
    assert seen == {torch.float32}
    assert result.solution.dtype == torch.float32
    # Against the solution for b as rounded: kappa * tol = 1e-4, and rounding in float32.
    assert relative(result.solution, np.linalg.solve(matrix, half.double().numpy())) < 5e-4
