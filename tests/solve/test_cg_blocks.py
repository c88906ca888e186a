"""CG on several systems at once, and on ranks that share their scalars."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cg_systems import block_diagonal, relative, solve, symmetric, system
from torch import Tensor

# ---------------------------------------------------------------------------------------------------------------------
# Blocks


@pytest.mark.parametrize("stopping", ["martens", "residual"])
@pytest.mark.parametrize("policy", ["truncate", "ignore", "absolute"])
@pytest.mark.parametrize("with_start", [False, True], ids=["zero", "x0"])
def test_blocks_equal_independent_systems(stopping, policy, with_start):
    rng = np.random.default_rng(70)
    spectra = [np.full(5, 2.0), np.geomspace(1.0, 4.0, 30), np.geomspace(1.0, 1e2, 60), np.array([-1.0, 2.0, 3.0])]
    blocks = [symmetric(spectrum, seed=71 + i) for i, spectrum in enumerate(spectra)]
    sizes = [len(block) for block in blocks]
    matrix, b = block_diagonal(blocks), rng.standard_normal(sum(sizes))
    x0 = 0.1 * rng.standard_normal(sum(sizes)) if with_start else None
    tolerances = [1e-1, 1e-2, 1e-2, 1e-2] if stopping == "residual" else [1e-2, 5e-3, 1e-2, 5e-4]
    diagonal = torch.tensor(rng.uniform(0.5, 2.0, sum(sizes)))
    options = {"stopping": stopping, "nonpositive_curvature": policy, "max_iter": 14}
    joint = solve(
        matrix, b, x0, block_sizes=sizes, tolerance=tolerances, preconditioner=lambda r: r / diagonal, **options
    )
    offsets = np.cumsum([0, *sizes])
    for i, (begin, end) in enumerate(pairwise(offsets)):
        part = diagonal[begin:end]
        start = None if x0 is None else x0[begin:end]
        alone = solve(
            blocks[i],
            b[begin:end],
            start,
            tolerance=tolerances[i],
            preconditioner=lambda r, part=part: r / part,
            **options,
        )
        assert joint.status[i] is alone.status[0]
        assert joint.iterations[i] == alone.iterations[0]
        # Same arithmetic in another order. CG amplifies rounding the more it has converged; these runs end early.
        assert relative(joint.solution[begin:end], alone.solution) < 1e-8
    if stopping == "residual":
        assert len(set(joint.iterations)) > 2  # the blocks do stop at different iterations


def test_finished_block_stays_still():
    blocks = [symmetric(np.linspace(1.0, 2.0, 10), seed=80), symmetric(np.geomspace(1.0, 1e4, 50), seed=81)]
    b = np.random.default_rng(82).standard_normal(60)
    result = solve(block_diagonal(blocks), b, block_sizes=[10, 50], stopping="residual", tolerance=[1e-2, 1e-8])
    first = result.iterations[0]
    assert first < 8 < result.iterations[1]
    later = [x[:10] for index, x in zip(result.indices, result.iterates, strict=True) if index >= first]
    assert len(later) > 3
    assert all(torch.equal(x, result.solution[:10]) for x in later)
    values = [v[0] for index, v in zip(result.indices, result.values, strict=True) if index >= first]
    assert len(set(values)) == 1


def test_one_block_is_no_blocks():
    matrix, solution, b = system(40, 1e3, seed=83)
    for options in ({}, {"stopping": "residual", "tolerance": 1e-6}, {"nonpositive_curvature": "absolute"}):
        plain = solve(matrix, b, 0.3 * solution, **options)
        one = solve(matrix, b, 0.3 * solution, block_sizes=[40], **options)
        assert plain.indices == one.indices
        assert plain.values == one.values
        assert all(torch.equal(x, y) for x, y in zip(plain.iterates, one.iterates, strict=True))
        assert (plain.iterations, plain.status, plain.products) == (one.iterations, one.status, one.products)


def test_tolerance_per_block():
    matrix, _, b = system(30, 1e3, seed=84)
    both = block_diagonal([matrix, matrix])
    # Both are reached within 30 iterations; later ones live on rounding, which differs between one block and two.
    result = solve(both, np.tile(b, 2), block_sizes=[30, 30], stopping="residual", tolerance=[1e-2, 1e-3])
    for block, tolerance in enumerate((1e-2, 1e-3)):
        assert result.iterations[block] == solve(matrix, b, stopping="residual", tolerance=tolerance).iterations[0]
    assert result.iterations[0] < result.iterations[1]


# ---------------------------------------------------------------------------------------------------------------------
# Ranks


def test_share_that_changes_nothing():
    blocks = [system(10, 50.0, seed=120)[0], system(12, 50.0, seed=121)[0]]
    b = np.random.default_rng(122).standard_normal(22)
    shapes: set[int] = set()

    def share(scalars: Tensor) -> Tensor:
        shapes.add(scalars.shape[-1])
        return scalars

    shared = solve(block_diagonal(blocks), b, block_sizes=[10, 12], share=share)
    plain = solve(block_diagonal(blocks), b, block_sizes=[10, 12])
    assert shapes == {2}
    assert torch.equal(shared.solution, plain.solution)
    assert shared.iterations == plain.iterations


@pytest.mark.parametrize("stopping", ["martens", "residual"])
def test_ranks_that_share_their_scalars_stop_together(stopping):
    # Rank 1 sees a matrix so different that on its own it stops elsewhere; with rank 0's scalars it follows rank 0.
    options = {"stopping": stopping, "tolerance": 5e-4}
    b = np.random.default_rng(131).standard_normal(60)
    first, second = symmetric(np.geomspace(1e-3, 1.0, 60), seed=130), symmetric(np.geomspace(1e-2, 1.0, 60), seed=130)
    sent: list[Tensor] = []

    def send(scalars: Tensor) -> Tensor:
        sent.append(scalars.clone())
        return scalars

    leader = solve(first, b, share=send, **options)
    received = iter(sent)
    follower = solve(second, b, share=lambda _: next(received).clone(), **options)
    assert follower.iterations == leader.iterations
    assert follower.status == leader.status
    assert next(received, None) is None
    assert solve(second, b, **options).iterations != leader.iterations
