"""CG where the curvature is not positive, and where a number is not finite."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cg_systems import (
    TO_THE_END,
    Matvec,
    block_diagonal,
    check_shape_of,
    energy,
    relative,
    solve,
    symmetric,
    system,
    textbook,
)
from torch import Tensor

from latephase.solve import CGStatus, conjugate_gradient

# ---------------------------------------------------------------------------------------------------------------------
# Nonpositive curvature


def late_negative() -> tuple[np.ndarray, np.ndarray, int]:
    """(A, b, k): an indefinite system whose iteration k > 2 is the first with p'Ap <= 0."""
    matrix = symmetric([10.0, 7.0, 5.0, 3.0, 1.0, -0.5], seed=90)
    values, vectors = np.linalg.eigh(matrix)
    b = vectors @ np.where(values < 0, 0.02, 1.0)
    curvatures = textbook(matrix, b, 6)[1]
    k = next(i for i, curvature in enumerate(curvatures, start=1) if curvature <= 0)
    assert k > 2
    return matrix, b, k


@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_truncate_at_iteration_one_returns_the_preconditioned_right_hand_side(curvature):
    diagonal = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    matrix, b = curvature * np.eye(3), np.array([1.0, -2.0, 3.0])
    plain = solve(matrix, b)
    assert torch.equal(plain.solution, torch.tensor(b))
    preconditioned = solve(matrix, b, preconditioner=lambda r: r / diagonal)
    assert torch.equal(preconditioned.solution, torch.tensor(b) / diagonal)
    for result in (plain, preconditioned):
        assert result.status == (CGStatus.NONPOSITIVE_CURVATURE,)
        assert result.values[-1][0] == pytest.approx(energy(matrix, b, np.asarray(result.solution)), rel=1e-12)


def test_truncate_at_iteration_one_keeps_a_start_better_than_zero():
    # p_1 = r = (0, 0.5): p'Ap < 0. m(x0) = -0.5 for x0 = (1, 0).
    matrix, b, x0 = np.diag([1.0, -1.0]), np.array([1.0, 0.5]), np.array([1.0, 0.0])
    result = solve(matrix, b, x0)
    assert result.status == (CGStatus.NONPOSITIVE_CURVATURE,)
    assert torch.equal(result.solution, torch.tensor(x0))
    assert result.values[-1][0] == pytest.approx(-0.5)


def test_truncate_at_iteration_one_drops_a_start_no_better_than_zero():
    # x0 = (2, 0): m(x0) = 0.5 * 4 - 2 = 0, not better than zero. r = (-1, 5): p'Ap = 1 - 25 < 0.
    matrix, b, x0 = np.diag([1.0, -1.0]), np.array([1.0, 5.0]), np.array([2.0, 0.0])
    assert energy(matrix, b, x0) == 0.0
    result = solve(matrix, b, x0)
    assert result.status == (CGStatus.NONPOSITIVE_CURVATURE,)
    assert torch.equal(result.solution, torch.tensor(b))
    assert result.values[-1][0] == pytest.approx(energy(matrix, b, b))


def test_truncate_later_returns_the_last_iterate_before():
    matrix, b, k = late_negative()
    result = solve(matrix, b, **TO_THE_END)
    assert result.status == (CGStatus.NONPOSITIVE_CURVATURE,)
    assert result.products == k
    assert relative(result.solution, textbook(matrix, b, k)[0][k - 1]) < 1e-10
    assert result.values[-1][0] == pytest.approx(energy(matrix, b, np.asarray(result.solution)), rel=1e-10)


def test_an_iteration_without_a_step_adds_no_candidate():
    # Backtracking stops where two neighbours have equal losses, so a repeated last iterate would end its walk at once.
    matrix, b, k = late_negative()
    truncated = solve(matrix, b, **TO_THE_END)
    spd, _, other_b = system(20, 100.0, seed=100)
    inner = Matvec(spd)
    nonfinite = conjugate_gradient(
        lambda v: inner(v) if inner.calls < 4 else torch.full_like(v, float("nan")), torch.tensor(other_b), **TO_THE_END
    )
    for result, last in ((truncated, k - 1), (nonfinite, 4)):
        assert not any(torch.equal(first, second) for first, second in pairwise(result.iterates))
        assert result.indices[-1] == max(result.iterations) == last


@pytest.mark.parametrize(("policy", "curvature"), [("ignore", lambda c: c), ("absolute", abs)])
def test_ignore_and_absolute_go_on(policy, curvature):
    matrix, b, k = late_negative()
    expected = textbook(matrix, b, k, curvature=curvature)[0]
    result = solve(matrix, b, nonpositive_curvature=policy, max_iter=k, **TO_THE_END)
    assert result.status == (CGStatus.MAX_ITERATIONS,)
    assert relative(result.solution, expected[k]) < 1e-9
    if policy == "absolute":
        assert relative(result.solution, textbook(matrix, b, k)[0][k]) > 1e-3
    # m is the quadratic of A itself, whatever the step length was taken from.
    assert result.values[-1][0] == pytest.approx(energy(matrix, b, np.asarray(result.solution)), rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Non-finite numbers


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("policy", ["truncate", "ignore", "absolute"])
def test_nonfinite_product_keeps_the_last_iterate(bad, call, policy):
    matrix, _, b = system(20, 100.0, seed=100)
    inner = Matvec(matrix)

    def matvec(v: Tensor) -> Tensor:
        out = inner(v)
        if inner.calls >= call:
            out[3] = bad
        return out

    result = conjugate_gradient(matvec, torch.tensor(b), nonpositive_curvature=policy, **TO_THE_END)
    check_shape_of(result, 20, 1)
    assert result.status == (CGStatus.NONFINITE,)
    if call > 1:
        assert relative(result.solution, textbook(matrix, b, call)[0][call - 1]) < 1e-10


def test_nonfinite_product_of_the_start():
    _, solution, b = system(20, 100.0, seed=101)
    result = conjugate_gradient(
        lambda v: torch.full_like(v, float("nan")), torch.tensor(b), torch.tensor(solution), rescale_x0=True
    )
    check_shape_of(result, 20, 1)
    assert result.status == (CGStatus.NONFINITE,)


def test_nonfinite_preconditioner():
    matrix, _, b = system(20, 100.0, seed=102)
    result = solve(matrix, b, preconditioner=lambda r: r * float("nan"))
    assert result.status == (CGStatus.NONFINITE,)


def test_nonfinite_block_leaves_the_others_alone():
    blocks = [system(10, 50.0, seed=103)[0], system(12, 5.0, seed=104)[0]]
    b = np.random.default_rng(105).standard_normal(22)
    inner = Matvec(block_diagonal(blocks))

    def matvec(v: Tensor) -> Tensor:
        out = inner(v)
        if inner.calls >= 3:
            out[:10] = float("nan")
        return out

    options = {"stopping": "residual", "tolerance": 1e-3}
    result = conjugate_gradient(matvec, torch.tensor(b), block_sizes=[10, 12], **options)
    check_shape_of(result, 22, 2)
    assert result.status == (CGStatus.NONFINITE, CGStatus.RESIDUAL)
    assert relative(result.solution[:10], textbook(blocks[0], b[:10], 2)[0][2]) < 1e-10
    alone = solve(blocks[1], b[10:], **options)
    assert result.iterations[1] == alone.iterations[0]
    assert relative(result.solution[10:], alone.solution) < 1e-10


def test_overflow_of_inner_products_is_not_an_infinite_solution():
    matrix, _, b = system(10, 10.0, seed=106)
    result = solve(matrix, 1e200 * b, max_iter=20)  # r'r overflows in float64
    assert bool(torch.isfinite(result.solution).all())
