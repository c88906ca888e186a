"""The randomised Nystrom approximation against matrices that are known."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dense_oracle import columns, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.preconditioners import Nystrom
from latephase.curvature.preconditioners.nystrom import SLACK, _orthonormal, _Sketch
from latephase.objective import Local
from latephase.solve import CGStatus, conjugate_gradient

ROOTS = 1e-6
"""Dividing by roots of rounding errors costs half the digits of float64; 1e-2 damping takes two more of them."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthogonal(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator(seed), dtype=torch.float64)).Q


def with_eigenvalues(values: Sequence[float], seed: int = 0) -> Tensor:
    basis = orthogonal(len(values), seed)
    return basis * torch.tensor(values, dtype=torch.float64) @ basis.T


def curved_by(matrix: Tensor, decay: Sequence[float] | None = None) -> Any:
    """A matrix in the clothes of a linearisation; the L2 term's diagonal is part of its products."""
    size = len(matrix)
    decay = [0.0] * size if decay is None else list(decay)
    whole = matrix + torch.diag(torch.tensor(decay, dtype=matrix.dtype))
    space = SimpleNamespace(
        size=size, sizes=[1] * size, dtype=matrix.dtype, device=matrix.device, parameters=[None] * size
    )
    curved = SimpleNamespace(space=space, products=0)
    curved.objective = SimpleNamespace(reduce=Local(), weight_decay=SimpleNamespace(of=lambda parameters: decay))

    def matvec(v: Tensor) -> Tensor:
        curved.products += 1
        return whole @ v

    class Kept(dict):
        """Products by blocks, made when they are asked for."""

        def __contains__(self, key: Any) -> bool:
            return True

        def __getitem__(self, key: Any) -> SimpleNamespace:
            diagonal = torch.block_diag(*[torch.ones(n, n, dtype=matrix.dtype) for n in key[1]]) * whole
            count = lambda: setattr(curved, "products", curved.products + 1)  # noqa: E731
            return SimpleNamespace(matvec=lambda v: (diagonal @ v, count())[0], expected=math.inf)

    curved.matvec, curved.kept = matvec, Kept()
    return curved


def inverse(matrix: Tensor, rank: int, damping: Any, blocks=None, decay=None) -> Tensor:
    """The dense M^-1."""
    method, blocks = Nystrom(rank=rank), blocks or [len(matrix)]
    torch.manual_seed(0)
    estimate = method.estimate(curved_by(matrix, decay), blocks)
    return columns(method.inverse(estimate, damping, blocks), len(matrix))


def damped(matrix: Tensor, damping: Any, decay: Any = 0.0) -> Tensor:
    size = len(matrix)
    return matrix + torch.diag(torch.ones(size, dtype=matrix.dtype) * torch.as_tensor(damping) + torch.as_tensor(decay))


PER_PARAMETER = torch.logspace(-2, 1, 12, dtype=torch.float64)


@pytest.mark.parametrize("damping", [0.3, PER_PARAMETER], ids=["one number", "per parameter"])
@pytest.mark.parametrize("decay", [None, [0.2] * 12, [0.2, 0.0] * 6], ids=["none", "uniform", "some"])
@pytest.mark.parametrize(("values", "rank"), [
    ([10.0**-k for k in range(12)], 12),
    ([10.0**-k for k in range(12)], 40),
    ([5.0, 3.0, 1.0] + [0.0] * 9, 4),
    ([5.0, 3.0, 1.0] + [0.0] * 9, 7),
], ids=["full", "more than full", "low", "lower than asked"])  # fmt: skip
def test_it_is_exact_with_full_rank_or_on_a_matrix_of_low_rank(values, rank, decay, damping):
    """Up to the roots of the shift, which is some sqrt(12) * 2e-16 of the norm."""
    matrix = with_eigenvalues(values)
    expected = torch.linalg.inv(damped(matrix, damping, 0.0 if decay is None else torch.tensor(decay)))
    assert relative(inverse(matrix, rank, damping, decay=decay), expected) < ROOTS


def test_it_keeps_the_rest_at_the_smallest_eigenvalue():
    """With eigenvalues well apart, M^-1 is 1 / (Lambda + lambda) on the leading ones and 1 / (s + lambda) elsewhere."""
    values = [1e8, 1e7, 1e6, 1e5, *[1e-3] * 8]
    basis = orthogonal(12)
    found = basis.T @ inverse(with_eigenvalues(values), 4, 1.0) @ basis
    expected = torch.tensor([1 / (value + 1) for value in values[:4]] + [1 / (values[3] + 1)] * 8, dtype=torch.float64)
    torch.testing.assert_close(found.diagonal(), expected, rtol=1e-3, atol=0)  # the gap between 1e5 and 1e-3


def test_blocks_have_their_own_sketches_and_stay_apart():
    """A block smaller than the rank is exact."""
    matrix, blocks = with_eigenvalues([10.0**-k for k in range(12)]) + torch.eye(12), [2, 7, 3]
    found = inverse(matrix, 7, 0.1, blocks)
    expected = torch.zeros_like(matrix)
    start = 0
    for size in blocks:
        own = slice(start, start + size)
        expected[own, own] = torch.linalg.inv(damped(matrix[own, own], 0.1))
        start += size
    assert relative(found, expected) < ROOTS


def test_blocks_share_their_products():
    """Five with the block-diagonal matrix for the sketches of all blocks, and one for the largest eigenvalues."""
    curved, blocks = curved_by(with_eigenvalues([1.0] * 12)), [2, 7, 3]
    estimate = Nystrom(rank=5).estimate(curved, blocks)
    assert curved.products == 5 + 1
    assert {name: tuple(tensor.shape) for name, tensor in estimate.items()} == {
        "vectors": (5, 12), "values": (3, 5), "rest": (3,), "decay": (1,),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low", [-1e-3, -1.0, -1e6])
def test_an_indefinite_matrix_gives_a_bounded_definite_one(low, dtype):
    """The eigenvalues of M lie between the damping and the norm of C plus the damping: |eigenvalues of Q'CQ| do."""
    values = [3.0, 2.0, 1.0, 0.5, *[0.1] * 6, low / 2, low]
    matrix = with_eigenvalues(values).to(dtype)
    for seed in range(20):
        torch.manual_seed(seed)
        method = Nystrom(rank=5)
        estimate = method.estimate(curved_by(matrix), [12])
        basis, rest = estimate["vectors"].double(), estimate["values"].double()
        assert relative(basis @ basis.T, torch.eye(5, dtype=torch.float64)) < 1e-5
        assert float(rest.min()) >= 0
        assert float(rest.max()) <= max(3.0, -low) / (1 - SLACK) * 1.0001


def test_nothing_but_zeros():
    for blocks in ([12], [4, 8]):
        found = inverse(torch.zeros(12, 12, dtype=torch.float64), 5, 0.5, blocks)
        torch.testing.assert_close(found, torch.eye(12, dtype=torch.float64) / 0.5)
        assert inverse(torch.zeros(12, 12, dtype=torch.float64), 5, 0.0, blocks).isfinite().all()


def test_products_that_are_not_finite_tell_nothing():
    curved = curved_by(torch.full((6, 6), float("nan"), dtype=torch.float64))
    method = Nystrom(rank=3)
    apply = method.inverse(method.estimate(curved, [6]), 0.5, [6])
    torch.testing.assert_close(columns(apply, 6), torch.eye(6, dtype=torch.float64) / 0.5)


@given(
    logs=st.lists(st.floats(-12, 8), min_size=2, max_size=14),
    signs=st.sampled_from(["positive", "mixed"]),
    rank=st.integers(1, 8),
    damping=st.sampled_from([0.0, 1e-12, 1e-3, 1e4]),
    spread=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, derandomize=True, max_examples=150)
def test_the_inverse_is_symmetric_positive_definite(logs, signs, rank, damping, spread, dtype, seed):
    """R'M^-1 r > 0 in the dtype of the run, in random directions and in those of the eigenvectors."""
    values = [10.0**log * (-1 if signs == "mixed" and i % 2 else 1) for i, log in enumerate(logs)]
    matrix, size = with_eigenvalues(values, seed).to(dtype), len(values)
    blocks = [1, size - 1]
    scale = torch.logspace(-4, 4, size, dtype=dtype) * damping if spread else damping
    torch.manual_seed(seed)
    method = Nystrom(rank=rank)
    estimate = method.estimate(curved_by(matrix), blocks)
    apply = method.inverse(estimate, scale, blocks)
    for r in (*torch.randn(5, size, generator=generator(seed)).to(dtype), *orthogonal(size, seed).T.to(dtype)):
        found = apply(r)
        assert found.isfinite().all()
        assert found.dtype == dtype
        assert float(r @ found) > 0
    dense = torch.stack([apply(unit) for unit in torch.eye(size, dtype=dtype)])
    assert relative(dense.T.double(), dense.double()) < 1e-4
    assert not dense[0, 1:].any()


def test_rows_of_eigenvectors_are_orthonormal_and_values_descend():
    matrix = with_eigenvalues([10.0 ** (-k / 2) for k in range(30)])
    q = orthogonal(30, 1)[:8]
    vectors, values = _Sketch(q, q @ matrix).nystrom()
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(8, dtype=torch.float64))
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    # The approximation never exceeds the matrix (Frangella et al. 2023, Lemma 2.1), nor its eigenvalues.
    assert float(torch.linalg.eigvalsh(matrix - vectors.T * values @ vectors)[0]) > -1e-12


@pytest.mark.parametrize(("size", "rank"), [(2000, 20), (81, 20), (79, 20), (20, 20), (5, 1)])
def test_test_vectors_are_orthonormal(size, rank):
    """To some tens of rounding units of float32: random vectors are nearly so from the start."""
    torch.manual_seed(0)
    rows = _orthonormal(torch.randn(rank, size))
    assert relative(rows.double() @ rows.double().T, torch.eye(rank, dtype=torch.float64)) < 3e-6


def test_conjugate_gradients_end_after_what_the_rest_needs():
    """With the six large eigenvalues captured, what is left has one value, so that two iterations or so suffice."""
    values = [1e6, 1e5, 1e4, 1e3, 1e2, 1e1] + [0.0] * 194
    matrix, damping = with_eigenvalues(values), 1e-2
    b = torch.randn(200, generator=generator(3), dtype=torch.float64)
    method = Nystrom(rank=10)
    apply = method.inverse(method.estimate(curved_by(matrix), [200]), damping, [200])
    options = {"stopping": "residual", "tolerance": 1e-8, "max_iter": 200}
    bare = conjugate_gradient(lambda v: matrix @ v + damping * v, b, **options)
    found = conjugate_gradient(lambda v: matrix @ v + damping * v, b, preconditioner=apply, **options)
    assert found.status == (CGStatus.RESIDUAL,)
    assert found.iterations[0] <= 2 < bare.iterations[0]


@pytest.mark.parametrize("wrong", [0, 2.0])
def test_the_rank_is_a_whole_number(wrong):
    with pytest.raises(ValueError, match="rank must be a whole number >= 1"):
        Nystrom(rank=wrong)


@pytest.mark.parametrize("scale", [1e9, 3e9, 1e12, 1e15])
def test_products_near_overflow_give_an_inverse_that_is_finite(scale):
    """In float32 their squares overflow from about 1e19 on."""
    torch.manual_seed(0)
    data = scale * torch.randn(13, 4), torch.randn(13, 3)
    curved = linearize(Objective(nn.Linear(4, 3), nn.MSELoss(), data))
    method = Nystrom()
    apply = method.inverse(method.estimate(curved, [15]), 1.0, [15])
    assert apply(torch.randn(15)).isfinite().all()
