"""Where CG stops: Martens' rule, the residual, the iteration limit, a right-hand side of zero."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from cg_systems import TO_THE_END, Matvec, block_diagonal, energy, relative, solve, symmetric, system, textbook

from latephase.solve import CGStatus, conjugate_gradient, iteration_grid


def martens_stop(values: Sequence[float], tolerance: float, factor: bool = True) -> int | None:
    """The first i with i > k, m_{i-k} < 0 and (m_i - m_{i-k}) / m_i < k * tolerance, k = max(10, ceil(i / 10))."""
    for i in range(1, len(values)):
        k = max(10, -(-i // 10))
        limit = k * tolerance if factor else tolerance
        if i > k and values[i - k] < 0 and (values[i] - values[i - k]) / values[i] < limit:
            return i
    return None


def energies_along(matrix: np.ndarray, b: np.ndarray, x0: np.ndarray, directions: Sequence[np.ndarray]) -> list[float]:
    """m(x_0), m(x_1), ... where x_i is the minimum of m along direction i from x_{i-1}."""
    x, energies = x0, [energy(matrix, b, x0)]
    for p in directions:
        x = x + (p @ (b - matrix @ x)) / (p @ matrix @ p) * p
        energies.append(energy(matrix, b, x))
    return energies


MARTENS = {
    "easy": (1e2, 5e-4, 0.0),
    "hard": (1e5, 5e-4, 0.0),
    "loose": (1e5, 5e-3, 0.0),
    "good_start": (1e4, 5e-4, 0.9),
    "bad_start": (1e4, 5e-4, 60.0),
}
"""Condition, tolerance, and the start: a share of a crude solution, or (above 1) a random vector of that size."""


@pytest.mark.parametrize("case", MARTENS)
def test_martens_rule_stops_at_the_named_iteration(case):
    condition, tolerance, start = MARTENS[case]
    rng = np.random.default_rng(31)
    matrix = symmetric(np.geomspace(1.0 / condition, 1.0, 300), seed=30)
    b = rng.standard_normal(300)
    x0 = start * rng.standard_normal(300) if start > 1 else start * np.linalg.solve(matrix + 1e-2 * np.eye(300), b)
    matvec = Matvec(matrix)
    started = () if start == 0.0 else (torch.tensor(x0),)
    result = conjugate_gradient(matvec, torch.tensor(b), *started, tolerance=tolerance, max_iter=400)
    assert result.status == (CGStatus.PROGRESS,)
    # Two correct programs part ways by rounding after some hundred iterations on these systems, so the energies are
    # those along the directions that this run asked the products of. The rule holds at the last one and at none before.
    energies = energies_along(matrix, b, x0, matvec.arguments[len(started) :])
    expected = martens_stop(energies, tolerance)
    assert result.iterations == (expected,) == (len(energies) - 1,)
    assert martens_stop(energies, tolerance, factor=False) is None  # the factor k makes a difference here
    assert [index for index in result.indices if index > 0] == iteration_grid(expected)
    # And they are the energies of CG: an independent run has the same, and stops within a few iterations of this one.
    textbook_energies = [energy(matrix, b, x) for x in textbook(matrix, b, 400, x0)[0]]
    assert energies[:20] == pytest.approx(textbook_energies[:20], rel=1e-6)
    assert martens_stop(textbook_energies, tolerance) == pytest.approx(expected, rel=0.03)
    if case == "hard":
        assert expected > 110  # the window is longer than 10 only from i = 101 on
    if case == "bad_start":
        assert energies[1] > 0  # a start worse than zero: no progress is claimed against it


@pytest.mark.parametrize("tolerance", [1e-1, 1e-4, 1e-8])
@pytest.mark.parametrize("with_start", [False, True], ids=["zero", "x0"])
def test_residual_rule_stops_at_the_first_small_residual(tolerance, with_start):
    # Well conditioned, and far fewer iterations than dimensions: elsewhere residuals hang on the rounding of products.
    matrix, _, b = system(400, 10.0, seed=41)
    x0 = np.random.default_rng(7).standard_normal(400) if with_start else None
    residuals = np.array(textbook(matrix, b, 200, x0)[2]) / (tolerance * np.linalg.norm(b))
    result = solve(matrix, b, x0, stopping="residual", tolerance=tolerance)
    (found,) = result.iterations
    assert 0 < found < 60
    assert residuals[found] <= 1 + 1e-3
    assert (residuals[:found] > 1 - 1e-3).all()
    assert result.status == (CGStatus.RESIDUAL,)


def test_max_iter_and_its_default():
    matrix, _, b = system(400, 1e10, seed=50)
    assert solve(matrix, b, max_iter=7, **TO_THE_END).iterations == (7,)
    result = solve(matrix, b, **TO_THE_END)
    assert result.iterations == (250,)
    assert result.status == (CGStatus.MAX_ITERATIONS,)


def test_defaults_are_martens_rule_at_5e_minus_4():
    matrix, _, b = system(100, 1e3, seed=51)
    named = solve(matrix, b, stopping="martens", tolerance=5e-4, max_iter=250, nonpositive_curvature="truncate")
    default = solve(matrix, b)
    assert torch.equal(named.solution, default.solution)
    assert default.iterations == named.iterations


@pytest.mark.parametrize("stopping", ["martens", "residual"])
def test_zero_right_hand_side(stopping):
    matrix, solution, _ = system(12, 10.0, seed=52)
    result = solve(matrix, np.zeros(12), stopping=stopping)
    assert torch.equal(result.solution, torch.zeros(12, dtype=torch.float64))
    assert result.iterations == (0,)
    assert result.status == (CGStatus.RESIDUAL,)
    # With a start the minimum is still zero; CG runs towards it and nothing divides by |b| = 0.
    started = solve(matrix, np.zeros(12), solution, stopping=stopping, max_iter=40)
    assert np.linalg.norm(np.asarray(started.solution)) < 1e-6 * np.linalg.norm(solution)


@pytest.mark.parametrize("stopping", ["martens", "residual"])
def test_zero_right_hand_side_of_one_block(stopping):
    blocks = [system(12, 10.0, seed=53)[0], system(9, 10.0, seed=54)[0]]
    b = np.concatenate([np.zeros(12), np.random.default_rng(55).standard_normal(9)])
    result = solve(block_diagonal(blocks), b, block_sizes=[12, 9], stopping=stopping)
    assert torch.equal(result.solution[:12], torch.zeros(12, dtype=torch.float64))
    assert result.iterations[0] == 0
    assert result.status[0] is CGStatus.RESIDUAL
    alone = solve(blocks[1], b[12:], stopping=stopping)
    assert result.iterations[1] == alone.iterations[0]
    assert relative(result.solution[12:], alone.solution) < 1e-10
