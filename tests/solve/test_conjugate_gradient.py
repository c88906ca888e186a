"""Conjugate gradients against known solutions, SciPy, and a textbook recurrence in NumPy.

Everything runs in float64 unless a test says otherwise. A tolerance that is not exact equality carries its reason.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import cg as scipy_cg
from torch import Tensor

from latephase.solve import CGResult, CGStatus, conjugate_gradient, iteration_grid

TO_THE_END = {"stopping": "residual", "tolerance": 0.0}
"""Options under which only `max_iter` ends a run on a generic system."""


# ---------------------------------------------------------------------------------------------------------------------
# Systems and oracles


def symmetric(eigenvalues: Sequence[float] | np.ndarray, seed: int) -> np.ndarray:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues), len(eigenvalues))))
    matrix = basis @ np.diag(np.asarray(eigenvalues, dtype=float)) @ basis.T
    return (matrix + matrix.T) / 2


def system(size: int, condition: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A, x, b) with b = A x, and the eigenvalues of A spread evenly in the logarithm from 1/condition to 1."""
    matrix = symmetric(np.geomspace(1.0 / condition, 1.0, size), seed)
    solution = np.random.default_rng(seed + 1).standard_normal(size)
    return matrix, solution, matrix @ solution


def energy(matrix: np.ndarray, b: np.ndarray, x: np.ndarray) -> float:
    """m(x) = 0.5 x'Ax - b'x, directly."""
    return float(0.5 * x @ matrix @ x - b @ x)


def textbook(
    matrix: np.ndarray,
    b: np.ndarray,
    count: int,
    x0: np.ndarray | None = None,
    inverse: np.ndarray | None = None,
    curvature: Callable[[float], float] = lambda c: c,
) -> tuple[list[np.ndarray], list[float], list[float]]:
    """Preconditioned CG (Hestenes & Stiefel): iterates x_0..x_count, p'Ap of each iteration, |r| of each iterate."""
    inverse = np.eye(len(b)) if inverse is None else inverse
    x = np.zeros_like(b) if x0 is None else x0.copy()
    r = b - matrix @ x
    z = inverse @ r
    p = z
    iterates, curvatures, residuals = [x], [], [float(np.linalg.norm(r))]
    for _ in range(count):
        if not r.any():
            break
        product = matrix @ p
        curvatures.append(float(p @ product))
        alpha = (r @ z) / curvature(curvatures[-1])
        x = x + alpha * p
        new_r = r - alpha * product
        new_z = inverse @ new_r
        p = new_z + (new_r @ new_z) / (r @ z) * p
        r, z = new_r, new_z
        iterates.append(x)
        residuals.append(float(np.linalg.norm(r)))
    return iterates, curvatures, residuals


def scipy_iterates(
    matrix: np.ndarray, b: np.ndarray, count: int, x0: np.ndarray | None = None, inverse: np.ndarray | None = None
) -> list[np.ndarray]:
    """SciPy's iterates x_1..x_count."""
    iterates: list[np.ndarray] = []
    preconditioner = None if inverse is None else LinearOperator(matrix.shape, matvec=lambda v: inverse @ v)
    scipy_cg(
        matrix,
        b,
        x0=x0,
        M=preconditioner,
        rtol=0.0,
        atol=0.0,
        maxiter=count,
        callback=lambda x: iterates.append(np.array(x)),
    )
    return iterates


class Matvec:
    """v -> A v on tensors; counts its calls and keeps their arguments."""

    def __init__(self, matrix: np.ndarray):
        self.matrix = torch.tensor(matrix)
        self.arguments: list[np.ndarray] = []

    @property
    def calls(self) -> int:
        return len(self.arguments)

    def __call__(self, v: Tensor) -> Tensor:
        self.arguments.append(v.numpy().copy())
        return self.matrix @ v


def solve(matrix: np.ndarray, b: np.ndarray, x0: np.ndarray | None = None, **options) -> CGResult:
    """conjugate_gradient on NumPy input; holds what every result must keep."""
    matvec = Matvec(matrix)
    start = None if x0 is None else torch.tensor(x0)
    result = conjugate_gradient(matvec, torch.tensor(b), start, **options)
    assert result.products == matvec.calls
    check_shape_of(result, len(b), len(options.get("block_sizes") or [len(b)]))
    return result


def check_shape_of(result: CGResult, size: int, blocks: int) -> None:
    """What every result keeps: lengths, order of the indices, a finite last iterate that is the solution."""
    assert len(result.iterates) == len(result.indices) == len(result.values) >= 1
    assert all(first < second for first, second in pairwise(result.indices))
    assert torch.equal(result.iterates[-1], result.solution)
    assert result.solution.shape == (size,)
    assert bool(torch.isfinite(result.solution).all())
    assert len(result.iterations) == len(result.status) == blocks
    assert all(len(value) == blocks for value in result.values)
    assert all(isinstance(status, CGStatus) for status in result.status)
    assert all(isinstance(iterations, int) for iterations in result.iterations)


def relative(actual: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """|actual - expected| / |expected| in the Euclidean norm."""
    difference = np.linalg.norm(np.asarray(actual) - np.asarray(expected))
    return float(difference / max(float(np.linalg.norm(np.asarray(expected))), 1e-300))


def block_diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """The matrix with these diagonal blocks and zeros elsewhere."""
    size = sum(len(block) for block in blocks)
    matrix, begin = np.zeros((size, size)), 0
    for block in blocks:
        matrix[begin : begin + len(block), begin : begin + len(block)] = block
        begin += len(block)
    return matrix


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
# Values, products, arguments


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


# ---------------------------------------------------------------------------------------------------------------------
# Stopping


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
    matrix, _, b = system(60, 100.0, seed=41)
    x0 = np.random.default_rng(42).standard_normal(60) if with_start else None
    residuals = textbook(matrix, b, 200, x0)[2]
    expected = next(i for i, residual in enumerate(residuals) if residual <= tolerance * np.linalg.norm(b))
    result = solve(matrix, b, x0, stopping="residual", tolerance=tolerance)
    assert result.iterations == (expected,)
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


# ---------------------------------------------------------------------------------------------------------------------
# Start


def test_rescaled_start_is_the_best_multiple():
    matrix, solution, b = system(25, 30.0, seed=60)
    x0 = 20.0 * (solution + 0.3 * np.random.default_rng(61).standard_normal(25))
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
    result = solve(both, np.tile(b, 2), block_sizes=[30, 30], stopping="residual", tolerance=[1e-2, 1e-8])
    for block, tolerance in enumerate((1e-2, 1e-8)):
        assert result.iterations[block] == solve(matrix, b, stopping="residual", tolerance=tolerance).iterations[0]
    assert result.iterations[0] < result.iterations[1]


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
    solve(matrix, 1e200 * b, max_iter=20)  # r'r overflows in float64; solve() checks that the solution is finite


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


# ---------------------------------------------------------------------------------------------------------------------
# Properties

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
