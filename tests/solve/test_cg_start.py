"""The start of CG: when it is rescaled, kept or dropped."""

import numpy as np
import torch
from cg_systems import TO_THE_END, block_diagonal, energy, relative, scipy_iterates, solve, system


def test_rescaled_start_is_the_best_multiple():
    matrix, solution, b = system(25, 30.0, seed=60)
    x0 = 20.0 * (solution + 0.3 * np.random.default_rng(62).standard_normal(25))
    assert energy(matrix, b, x0) > 0
    best = (b @ x0) / (x0 @ matrix @ x0) * x0
    result = solve(matrix, b, x0, rescale_x0=True, max_iter=3, **TO_THE_END)
    expected = scipy_iterates(matrix, b, 3, best)
    assert relative(result.solution, expected[2]) < 1e-9


def test_start_that_points_uphill_becomes_zero():
    # b'x0 < 0: no positive multiple of x0 is a descent.
    matrix, solution, b = system(25, 30.0, seed=60)
    result = solve(matrix, b, -solution, rescale_x0=True, max_iter=3, **TO_THE_END)
    assert relative(result.solution, solve(matrix, b, max_iter=3, **TO_THE_END).solution) < 1e-12


def test_good_start_is_not_rescaled():
    matrix, solution, b = system(25, 30.0, seed=62)
    x0 = 0.7 * solution
    assert energy(matrix, b, x0) < 0
    rescaled = solve(matrix, b, x0, rescale_x0=True, max_iter=3, **TO_THE_END)
    plain = solve(matrix, b, x0, rescale_x0=False, max_iter=3, **TO_THE_END)
    assert torch.equal(rescaled.solution, plain.solution)


def test_start_without_a_best_multiple_becomes_zero():
    # Along x0 the quadratic is concave: b'x0 / x0'Ax0 is its maximum, and no multiple is the best one.
    matrix, b, x0 = np.diag([1.0, -1.0]), np.array([2.0, -1.0]), np.array([0.0, 1.0])
    assert energy(matrix, b, x0) > 0
    result = solve(matrix, b, x0, rescale_x0=True, max_iter=1, **TO_THE_END)
    assert torch.equal(result.solution, solve(matrix, b, max_iter=1, **TO_THE_END).solution)


def test_rescaling_is_per_block():
    blocks = [system(8, 10.0, seed=63), system(8, 10.0, seed=64)]
    matrix = block_diagonal([block[0] for block in blocks])
    b = np.concatenate([block[2] for block in blocks])
    x0 = np.concatenate([0.7 * blocks[0][1], 9.0 * blocks[1][1]])
    result = solve(matrix, b, x0, block_sizes=[8, 8], rescale_x0=True, max_iter=2, **TO_THE_END)
    for block, part in enumerate((slice(0, 8), slice(8, 16))):
        alone = solve(blocks[block][0], b[part], x0[part], rescale_x0=True, max_iter=2, **TO_THE_END)
        # 9 x* is rescaled to x* itself, exact up to rounding; absolute against |x*|.
        assert np.linalg.norm(result.solution[part] - alone.solution) < 1e-10 * np.linalg.norm(blocks[block][1])
