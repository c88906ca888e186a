"""Properties of CG over random systems and combinations of options."""

from itertools import pairwise

import numpy as np
import torch
from cg_systems import block_diagonal, energy, solve, symmetric, system
from hypothesis import given, settings
from hypothesis import strategies as st

from latephase.solve import CGStatus

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@PROPERTY
@given(
    size=st.integers(1, 25),
    exponent=st.floats(0.0, 5.0),
    seed=st.integers(0, 10_000),
    with_start=st.booleans(),
    preconditioned=st.booleans(),
    stopping=st.sampled_from(["martens", "residual"]),
)
def test_energy_never_increases_on_spd_systems(size, exponent, seed, with_start, preconditioned, stopping):
    matrix, solution, b = system(size, 10.0**exponent, seed)
    rng = np.random.default_rng(seed + 2)
    x0 = 2.0 * rng.standard_normal(size) if with_start else None
    diagonal = torch.tensor(rng.uniform(0.1, 10.0, size))
    result = solve(
        matrix,
        b,
        x0,
        stopping=stopping,
        tolerance=1e-8,
        max_iter=60,
        preconditioner=(lambda r: r / diagonal) if preconditioned else None,
    )
    assert result.status[0] in (CGStatus.PROGRESS, CGStatus.RESIDUAL, CGStatus.MAX_ITERATIONS)
    start = energy(matrix, b, x0) if x0 is not None else 0.0
    scale = abs(start) + abs(energy(matrix, b, solution))
    direct = [start] + [energy(matrix, b, np.asarray(x)) for x in result.iterates]
    # Exact CG decreases m strictly; rounding may lift it by some 1e-16 of the largest energy in play.
    assert all(after <= before + 1e-11 * scale for before, after in pairwise(direct))
    for (value,), expected in zip(result.values, direct[1:], strict=True):
        assert abs(value - expected) <= 1e-9 * scale


@settings(PROPERTY, max_examples=150)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(0, 10_000),
    spectrum=st.sampled_from(["positive", "indefinite", "negative", "singular", "zero"]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    start=st.sampled_from([None, 0.0, 1.0, 1e8]),
    stopping=st.sampled_from(["martens", "residual"]),
    policy=st.sampled_from(["truncate", "ignore", "absolute"]),
    rescale=st.booleans(),
    preconditioned=st.booleans(),
    max_iter=st.integers(1, 40),
)
def test_any_combination_of_options_gives_a_finite_solution(
    sizes, seed, spectrum, scale, start, stopping, policy, rescale, preconditioned, max_iter
):
    rng = np.random.default_rng(seed)
    eigenvalues = {
        "positive": lambda n: rng.uniform(0.1, 1.0, n),
        "indefinite": lambda n: rng.standard_normal(n),
        "negative": lambda n: -rng.uniform(0.1, 1.0, n),
        "singular": lambda n: rng.integers(0, 2, n).astype(float),
        "zero": np.zeros,
    }[spectrum]
    matrix = block_diagonal([scale * symmetric(eigenvalues(n), seed + i) for i, n in enumerate(sizes)])
    b = rng.standard_normal(sum(sizes))
    diagonal = torch.tensor(rng.uniform(0.1, 10.0, sum(sizes)))
    result = solve(
        matrix,
        b,
        None if start is None else start * rng.standard_normal(sum(sizes)),
        block_sizes=sizes,
        stopping=stopping,
        tolerance=1e-6,
        nonpositive_curvature=policy,
        rescale_x0=rescale,
        preconditioner=(lambda r: r / diagonal) if preconditioned else None,
        max_iter=max_iter,
    )
    assert all(bool(torch.isfinite(x).all()) for x in result.iterates)
    assert all(np.isfinite(value) for values in result.values for value in values)
    assert max(result.iterations) <= max_iter
    assert result.products <= max_iter + 2
