"""A second quadratic model: directions from one system, slopes and curvatures along them from another.

The oracle follows Section 4 of Tatzel, Mucsanyi, Hackel and Hennig (2024) in NumPy: the directions are the differences
of the iterates of plain conjugate gradients, and each gets the length that minimises the second model.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from cg_systems import TO_THE_END, Matvec, block_diagonal, energy, relative, symmetric, system, textbook
from hypothesis import given, settings
from hypothesis import strategies as st

from latephase.solve import CGResult, CGStatus, conjugate_gradient, iteration_grid

# A dozen iterations on condition numbers below 100, in float64: rounding grows to some 1e-13 at most.
ROUNDING = 1e-10


def reweighed(matrix: np.ndarray, b: np.ndarray, directions: Sequence[np.ndarray]) -> list[np.ndarray]:
    """0 and the iterates behind each direction d: x += (d'(b - A x) / d'Ad) d, skipped where d'Ad <= 0."""
    x = np.zeros_like(b)
    iterates = [x]
    for direction in directions:
        curvature = float(direction @ matrix @ direction)
        if curvature > 0:
            x = x + float(direction @ (b - matrix @ x)) / curvature * direction
        iterates.append(x)
    return iterates


def solve_both(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    x0: np.ndarray | None = None,
    **options,
) -> tuple[CGResult, Matvec]:
    """conjugate_gradient on both systems (A, b), and the second matrix with its record of products."""
    other = Matvec(second[0])
    start = None if x0 is None else torch.tensor(x0)
    b = torch.tensor(first[1])
    result = conjugate_gradient(Matvec(first[0]), b, start, second=(other, torch.tensor(second[1])), **options)
    assert len(result.iterates) == len(result.indices) == len(result.values)
    return result, other


def pair(size: int = 30, seed: int = 0) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Two systems (A, b) with nothing in common."""
    (first, _, b), (second, _, b2) = system(size, 50.0, seed), system(size, 20.0, seed + 10)
    return (first, b), (second, b2)


def differences(iterates: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [after - before for before, after in pairwise(iterates)]


@pytest.mark.parametrize("with_start", [False, True], ids=["zero", "x0"])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_each_direction_gets_the_length_of_the_second_model(with_start, preconditioned):
    first, second = pair()
    rng = np.random.default_rng(100)
    x0 = rng.standard_normal(30) if with_start else None
    diagonal = rng.uniform(0.5, 2.0, 30)
    scale = torch.tensor(diagonal)
    extra = {"preconditioner": lambda r: r / scale} if preconditioned else {}
    result, other = solve_both(first, second, x0, max_iter=12, **TO_THE_END, **extra)
    iterates = textbook(*first, 12, x0, np.diag(1 / diagonal) if preconditioned else None)[0]
    directions = differences(iterates)
    expected = reweighed(*second, directions)
    if x0 is not None:
        expected = reweighed(*second, [x0, *directions])[1:]
    assert result.indices == iteration_grid(12)
    for index, iterate in zip(result.indices, result.iterates, strict=True):
        assert relative(iterate, expected[index]) < ROUNDING
    assert relative(result.solution, iterates[-1]) < ROUNDING, "the solution is CG's own"
    assert result.products == 12 + with_start
    assert other.calls == 12 + with_start, "one product with the second matrix per direction"


@pytest.mark.parametrize("with_start", [False, True], ids=["zero", "x0"])
def test_the_directions_are_those_of_a_plain_run(with_start):
    """The second matrix is multiplied with the plain run's directions, up to their lengths, and with nothing else."""
    first, second = pair()
    x0 = np.random.default_rng(102).standard_normal(30) if with_start else None
    _, other = solve_both(first, second, x0, max_iter=8, **TO_THE_END)
    expected = ([] if x0 is None else [x0]) + differences(textbook(*first, 8, x0)[0])
    assert len(other.arguments) == len(expected)
    for argument, direction in zip(other.arguments, expected, strict=True):
        cosine = argument @ direction / np.linalg.norm(argument) / np.linalg.norm(direction)
        assert cosine == pytest.approx(1.0, abs=ROUNDING)


@pytest.mark.parametrize("with_start", [False, True], ids=["zero", "x0"])
def test_values_are_the_second_model(with_start):
    first, second = pair(seed=3)
    x0 = np.random.default_rng(104).standard_normal(30) if with_start else None
    result, _ = solve_both(first, second, x0, max_iter=20, **TO_THE_END)
    scale = np.linalg.norm(second[1]) * max(float(x.norm()) for x in result.iterates)
    for iterate, values in zip(result.iterates, result.values, strict=True):
        # 1e-12 of |b2||x|: a few thousand roundings.
        assert values == (pytest.approx(energy(*second, iterate.numpy()), rel=0, abs=1e-12 * scale),)
    # Along every direction the second model is minimised, so it never rises.
    assert all(after[0] <= before[0] + 1e-12 * scale for before, after in pairwise(result.values))


@pytest.mark.parametrize("policy", ["truncate", "ignore", "absolute"])
def test_the_same_model_twice_is_plain_cg(policy):
    first, _ = pair()
    options = {"max_iter": 12, "nonpositive_curvature": policy, **TO_THE_END}
    result, _ = solve_both(first, first, **options)
    plain = conjugate_gradient(Matvec(first[0]), torch.tensor(first[1]), **options)
    assert result.indices == plain.indices
    assert torch.equal(result.solution, plain.solution)
    for iterate, expected in zip(result.iterates, plain.iterates, strict=True):
        assert relative(iterate, expected) < ROUNDING
    for (value,), (expected,) in zip(result.values, plain.values, strict=True):
        assert value == pytest.approx(expected, rel=ROUNDING)
    assert (result.iterations, result.status, result.products) == (plain.iterations, plain.status, plain.products)


def test_the_second_model_does_not_touch_the_run():
    """Solution, iterations, status and products of A are bit for bit those of the run without it."""
    for seed in range(3):
        first, second = pair(seed=seed)
        x0 = np.random.default_rng(105 + seed).standard_normal(30)
        for options in ({}, {"stopping": "residual", "tolerance": 1e-4}, {"rescale_x0": True}):
            result, _ = solve_both(first, second, x0, **options)
            plain = conjugate_gradient(Matvec(first[0]), torch.tensor(first[1]), torch.tensor(x0), **options)
            assert torch.equal(result.solution, plain.solution)
            assert (result.indices, result.iterations, result.status, result.products) == (
                plain.indices,
                plain.iterations,
                plain.status,
                plain.products,
            )


def test_directions_of_nonpositive_second_curvature_are_skipped():
    first, (_, b2) = pair()
    indefinite = symmetric(np.concatenate([np.full(15, -1.0), np.linspace(0.5, 2.0, 15)]), seed=6)
    directions = differences(textbook(*first, 12)[0])
    skipped = [d @ indefinite @ d <= 0 for d in directions]
    assert 2 <= sum(skipped) <= 10
    result, _ = solve_both(first, (indefinite, b2), max_iter=12, **TO_THE_END)
    expected = reweighed(indefinite, b2, directions)
    for index, iterate in zip(result.indices, result.iterates, strict=True):
        assert relative(iterate, expected[index]) < ROUNDING


@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_a_second_model_without_curvature_stays_at_zero(curvature):
    first, (_, b2) = pair()
    result, _ = solve_both(first, (curvature * np.eye(30), b2), max_iter=5, **TO_THE_END)
    assert all(not iterate.any() for iterate in result.iterates)
    assert all(values == (0.0,) for values in result.values)
    assert result.solution.any()


def test_blocks_have_lengths_of_their_own():
    sizes, begin = [8, 14, 11], 0
    systems = [pair(size, seed=20 + size) for size in sizes]
    first, second = (
        (block_diagonal([both[i][0] for both in systems]), np.concatenate([both[i][1] for both in systems]))
        for i in (0, 1)
    )
    x0 = np.random.default_rng(106).standard_normal(sum(sizes))
    x0[8:22] = 0.0  # a block without a start
    options = {"stopping": "residual", "max_iter": 9}
    joint, _ = solve_both(first, second, x0, block_sizes=sizes, tolerance=[1e-1, 0.0, 1e-2], **options)
    assert len(set(joint.iterations)) == 3, "the blocks are to stop at different iterations"
    for block, size in enumerate(sizes):
        own, other = systems[block]
        start = x0[begin : begin + size]
        directions = differences(textbook(*own, joint.iterations[block], start)[0])
        expected = reweighed(*other, [start, *directions])[1:]
        for index, iterate, values in zip(joint.indices, joint.iterates, joint.values, strict=True):
            mine = iterate.numpy()[begin : begin + size]
            assert relative(mine, expected[min(index, joint.iterations[block])]) < ROUNDING
            assert values[block] == pytest.approx(energy(*other, mine), abs=1e-10)
        begin += size


@pytest.mark.parametrize("factor", [20.0, -1.0, 0.5])
def test_the_length_of_the_start_is_the_second_models_whatever_its_scale(factor):
    """Rescaled, dropped or kept by the first model: its own length is used for the directions that follow only."""
    matrix, solution, b = system(25, 30.0, seed=60)
    second = system(25, 10.0, seed=61)[::2]
    x0 = factor * (solution + 0.3 * np.random.default_rng(101).standard_normal(25))
    start = x0
    if energy(matrix, b, x0) > 0:
        start = max(b @ x0, 0.0) / (x0 @ matrix @ x0) * x0
    assert (start is x0) == (factor == 0.5)
    result, _ = solve_both((matrix, b), second, x0, rescale_x0=True, max_iter=6, **TO_THE_END)
    directions = differences(textbook(matrix, b, 6, start)[0])
    expected = reweighed(*second, [start, *directions])[1:] if start.any() else reweighed(*second, directions)
    for index, iterate in zip(result.indices, result.iterates, strict=True):
        assert relative(iterate, expected[index]) < ROUNDING


def test_truncated_at_once_the_steepest_direction_is_reweighed():
    second = system(5, 10.0, seed=7)[::2]
    b, diagonal = np.array([1.0, -2.0, 3.0, 0.5, 0.0]), np.array([1.0, 2.0, 4.0, 1.0, 1.0])
    scale = torch.tensor(diagonal)
    for inverse, extra in ((np.ones(5), {}), (1 / diagonal, {"preconditioner": lambda r: r / scale})):
        result, _ = solve_both((-np.eye(5), b), second, **extra)
        assert result.status == (CGStatus.NONPOSITIVE_CURVATURE,)
        assert torch.equal(result.solution, torch.tensor(inverse * b))
        expected = reweighed(*second, [inverse * b])[-1]
        assert relative(result.iterates[-1], expected) < ROUNDING
        assert result.values[-1][0] == pytest.approx(energy(*second, expected), rel=ROUNDING)


def test_truncated_at_once_a_good_start_is_reweighed():
    # The first direction r = (0, 0.5) has negative curvature; m(x0) = -0.5 for x0 = (1, 0), which is kept.
    first, x0 = (np.diag([1.0, -1.0]), np.array([1.0, 0.5])), np.array([1.0, 0.0])
    second = (np.diag([4.0, 2.0]), np.array([2.0, 3.0]))
    result, _ = solve_both(first, second, x0)
    assert result.status == (CGStatus.NONPOSITIVE_CURVATURE,)
    assert torch.equal(result.solution, torch.tensor(x0))
    assert result.iterates[-1].tolist() == [0.5, 0.0]
    assert result.values[-1] == (-0.5,)


def test_truncated_later_the_directions_before_count():
    matrix = symmetric([10.0, 7.0, 5.0, 3.0, 1.0, -0.5], seed=90)
    eigenvalues, vectors = np.linalg.eigh(matrix)
    b = vectors @ np.where(eigenvalues < 0, 0.02, 1.0)
    second = system(6, 10.0, seed=91)[::2]
    result, _ = solve_both((matrix, b), second, **TO_THE_END)
    assert result.status == (CGStatus.NONPOSITIVE_CURVATURE,)
    last = result.iterations[0]
    assert last >= 2
    expected = reweighed(*second, differences(textbook(matrix, b, last)[0]))
    assert relative(result.iterates[-1], expected[last]) < ROUNDING
    absolute, _ = solve_both((matrix, b), second, nonpositive_curvature="absolute", max_iter=6, **TO_THE_END)
    expected = reweighed(*second, differences(textbook(matrix, b, 6, curvature=abs)[0]))
    assert relative(absolute.iterates[-1], expected[6]) < ROUNDING


@pytest.mark.parametrize("case", ["residual", "martens", "blocks", "truncated", "max_iter"])
@pytest.mark.parametrize("check_every", [2, 7, 100])
def test_looking_less_often_changes_no_number(case, check_every):
    first, second = pair(seed=8)
    options = {
        "residual": {"stopping": "residual", "tolerance": 1e-2},
        "martens": {"tolerance": 1e-2},
        "blocks": {"stopping": "residual", "tolerance": [1e-1, 1e-3], "block_sizes": [10, 20]},
        "truncated": {},
        "max_iter": {"max_iter": 9, **TO_THE_END},
    }[case]
    if case == "blocks":
        first, second = ((block_diagonal([a[:10, :10], a[10:, 10:]]), b) for a, b in (first, second))
    if case == "truncated":
        first = symmetric(np.concatenate([np.linspace(1.0, 9.0, 29), [-1.0]]), seed=9), first[1]
    x0 = 0.3 * np.random.default_rng(107).standard_normal(30)
    often, _ = solve_both(first, second, x0, check_every=1, **options)
    seldom, _ = solve_both(first, second, x0, check_every=check_every, **options)
    assert often.indices == seldom.indices
    assert often.values == seldom.values
    assert all(torch.equal(x, y) for x, y in zip(often.iterates, seldom.iterates, strict=True))
    assert torch.equal(often.solution, seldom.solution)
    assert (often.iterations, often.status) == (seldom.iterations, seldom.status)
    if case == "truncated":
        assert often.status == (CGStatus.NONPOSITIVE_CURVATURE,)


def test_arguments_are_left_alone():
    first, second = pair()
    b, b2, x0 = torch.tensor(first[1]), torch.tensor(second[1]), torch.ones(30, dtype=torch.float64)
    result = conjugate_gradient(Matvec(first[0]), b, x0, second=(Matvec(second[0]), b2), max_iter=4)
    for iterate in result.iterates:
        iterate.zero_()
    assert torch.equal(b, torch.tensor(first[1]))
    assert torch.equal(b2, torch.tensor(second[1]))
    assert torch.equal(x0, torch.ones(30, dtype=torch.float64))
    assert result.solution.any()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from([1.0, 1e-6, 1e6]),
)
def test_any_two_models(seed, size, count, with_start, scale):
    """Iterates and values of random pairs, whose units differ by up to a million."""
    rng = np.random.default_rng(seed)
    first = symmetric(rng.uniform(0.2, 5.0, size), seed), rng.standard_normal(size)
    second = scale * symmetric(rng.uniform(0.2, 5.0, size), seed + 1), rng.standard_normal(size)
    x0 = rng.standard_normal(size) if with_start else None
    # Behind the last direction of a space of this size there is rounding only.
    count = min(count, size)
    result, _ = solve_both(first, second, x0, max_iter=count, stopping="residual", tolerance=1e-8)
    directions = differences(textbook(*first, result.iterations[0], x0)[0])
    expected = reweighed(*second, directions) if x0 is None else reweighed(*second, [x0, *directions])[1:]
    for index, iterate, values in zip(result.indices, result.iterates, result.values, strict=True):
        assert relative(iterate, expected[index]) < 1e-6  # the residual may have come down by 1e-8, and with it digits
        reach = float(np.linalg.norm(second[1]) * iterate.norm())
        assert values[0] == pytest.approx(energy(*second, iterate.numpy()), rel=0, abs=1e-11 * reach + 1e-300)
