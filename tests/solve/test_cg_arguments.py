"""Values and products of a CG result, and the arguments: left alone, or refused."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cg_systems import TO_THE_END, Matvec, block_diagonal, energy, solve, system

from latephase.solve import CGStatus, conjugate_gradient


@pytest.mark.parametrize("with_start", [False, True], ids=["zero", "x0"])
def test_values_are_the_quadratic_per_block(with_start):
    blocks = [system(10, 10.0, seed=1)[0], system(17, 100.0, seed=2)[0], system(1, 1.0, seed=3)[0]]
    matrix = block_diagonal(blocks)
    rng = np.random.default_rng(4)
    b = rng.standard_normal(28)
    x0 = rng.standard_normal(28) if with_start else None
    sizes = [10, 17, 1]
    result = solve(matrix, b, x0, block_sizes=sizes, max_iter=25, **TO_THE_END)
    offsets = np.cumsum([0, *sizes])
    for iterate, values in zip(result.iterates, result.values, strict=True):
        for block, (begin, end) in enumerate(pairwise(offsets)):
            expected = energy(blocks[block], b[begin:end], np.asarray(iterate)[begin:end])
            # m is a difference of terms of the size of b'x: 1e-11 of that is 1e5 roundings.
            scale = np.linalg.norm(b[begin:end]) * np.linalg.norm(np.asarray(iterate)[begin:end])
            assert abs(values[block] - expected) <= 1e-11 * (scale + 1.0)


def test_no_product_is_spent_on_values():
    matrix, solution, b = system(30, 100.0, seed=7)
    assert solve(matrix, b, max_iter=9, **TO_THE_END).products == 9
    assert solve(matrix, b, 0.5 * solution, max_iter=9, **TO_THE_END).products == 10
    assert solve(matrix, b, 5.0 * solution, rescale_x0=True, max_iter=9, **TO_THE_END).products == 10


def test_arguments_are_left_alone():
    matrix, solution, b = system(20, 50.0, seed=8)
    b_tensor, x0_tensor = torch.tensor(b), torch.tensor(4.0 * solution)
    for rescale in (False, True):
        result = conjugate_gradient(Matvec(matrix), b_tensor, x0_tensor, rescale_x0=rescale, max_iter=15)
        result.solution.zero_()
        assert torch.equal(b_tensor, torch.tensor(b))
        assert torch.equal(x0_tensor, torch.tensor(4.0 * solution))
    start = conjugate_gradient(Matvec(matrix), b_tensor, torch.tensor(solution), stopping="residual", tolerance=1e-6)
    assert start.iterations == (0,)


def test_iterates_are_separate_tensors():
    matrix, _, b = system(20, 50.0, seed=8)
    result = solve(matrix, b, max_iter=10, **TO_THE_END)
    assert len({iterate.data_ptr() for iterate in result.iterates}) == len(result.iterates)


@pytest.mark.parametrize(
    "options",
    [
        {"stopping": "nonsense"},
        {"nonpositive_curvature": "nonsense"},
        {"max_iter": 0},
        {"block_sizes": [3, 4]},
        {"block_sizes": [3, 3], "tolerance": [1e-3, 1e-3, 1e-3]},
        {"x0": torch.zeros(5, dtype=torch.float64)},
        {"b": torch.ones(6, dtype=torch.int64)},
    ],
    ids=["stopping", "nonpositive_curvature", "max_iter", "block_sizes", "tolerances", "x0_shape", "integer_b"],
)
def test_bad_input_is_a_value_error(options):
    options = dict(options)
    b = options.pop("b", torch.ones(6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"."):
        conjugate_gradient(lambda v: v, b, options.pop("x0", None), **options)


def test_status_values_are_lower_case_names():
    assert [status.value for status in CGStatus] == [status.name.lower() for status in CGStatus]
    assert {status.name for status in CGStatus} == {
        "PROGRESS",
        "RESIDUAL",
        "MAX_ITERATIONS",
        "NONPOSITIVE_CURVATURE",
        "NONFINITE",
    }
