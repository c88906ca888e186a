"""Linear systems, oracles in NumPy and SciPy, and what every CG result must keep."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import cg as scipy_cg
from torch import Tensor

from latephase.solve import CGResult, CGStatus, conjugate_gradient

# Everything runs in float64 unless a test says otherwise. A tolerance that is not exact equality carries its reason.

TO_THE_END = {"stopping": "residual", "tolerance": 0.0}
"""Options under which only `max_iter` ends a run on a generic system."""


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
