"""The randomised Nystrom approximation from curvature products (Frangella, Tropp and Udell 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..blocks import over_blocks
from ..linearization import Linearization
from .base import Apply, Estimate, Preconditioner, check_whole, decay_of, shared_seed

PIECE = 2**14
"""Columns that are brought to double precision at once: what stays in a processor's cache."""

SLACK = 0.1
"""Relative error that products may have, being computed in less than single precision, say."""


@dataclass(frozen=True, kw_only=True)
class Nystrom(Preconditioner):
    """M = U (Lambda - s) U' + s + wd + lambda: the largest eigenvalues of the curvature, and one number for the rest.

    Frangella, Tropp and Udell 2023, "Randomized Nystrom preconditioning", Algorithms 2.1 and 5.1; in training, Rathore
    et al. 2024, "Challenges in training PINNs". U and Lambda are the eigenvectors and eigenvalues of the Nystrom
    approximation Y (Q'Y)^-1 Y' with Y = C Q and a random orthonormal Q, and s the smallest of Lambda. It serves where
    some eigenvalues stand far above the others, and any curvature that has products: no layer or loss is asked for.

    Where the curvature is indefinite (a Hessian), that formula may be large where the curvature is not. Then Lambda
    holds the absolute values of the eigenvalues of Q'C Q instead, and U the vectors Q times its eigenvectors.

    An estimate costs `rank` + 1 products, of all blocks at once, of which the last shows whether the formula
    overshoots, and `rank` numbers for each parameter, which stay in the optimizer's state; three times that while it is
    made.

    Attributes:
        rank: number of eigenvalues of each block, at most the block's size. Default 20.
        every: steps after which it is estimated anew. Default 10, so that it costs two products a step.

    Raises:
        ValueError: a setting that is none.
    """

    entries: ClassVar[tuple[str, ...]] = ("vectors", "values", "rest", "decay")

    rank: int = 20
    every: int = 10

    def __post_init__(self):
        check_whole("rank", self.rank)
        check_whole("every", self.every)

    def estimate(self, curved: Linearization, blocks: Sequence[int]) -> Estimate:
        """The eigenvectors of each block as rows, "vectors" [rank, P], and the rest.

        That is "values" [blocks, rank], the eigenvalues, descending, with zeros at the end where a block is smaller
        than the rank; "rest" [blocks], the smallest of each; and "decay", the diagonal of the L2 term, [1] where it is
        the same everywhere, otherwise [P].
        """
        blocks, decay = list(blocks), decay_of(curved)
        products = curved.matvec if len(blocks) == 1 else over_blocks(curved, blocks, self.rank + 1).matvec

        def multiply(v: Tensor) -> Tensor:
            return products(v) - decay * v

        test = self._test_vectors(curved, blocks)
        product = torch.stack([multiply(row) for row in test])
        sketches = [_Sketch(*pair) for pair in zip(test.split(blocks, 1), product.split(blocks, 1), strict=True)]
        pairs = [sketch.nystrom() for sketch in sketches]
        # The approximation never exceeds a matrix that is positive semi-definite, nor then the norm of any.
        top = torch.cat([vectors[0] for vectors, _ in pairs])
        curvatures = [x @ y for x, y in zip(top.split(blocks), multiply(top).split(blocks), strict=True)]
        for block, curvature in enumerate(curvatures):
            if not curvature >= (1 - SLACK) * pairs[block][1][0] - sketches[block].shift:
                pairs[block] = sketches[block].projected()
        values = torch.zeros(len(blocks), len(test), dtype=decay.dtype, device=decay.device)
        for block, (rows, (vectors, own)) in enumerate(zip(test.split(blocks, 1), pairs, strict=True)):
            rows[: len(own)], values[block, : len(own)] = vectors, own
        rest = torch.stack([own[-1] for _, own in pairs])
        uniform = bool((decay == decay[0]).all())
        return {"vectors": test, "values": values, "rest": rest, "decay": decay[:1].clone() if uniform else decay}

    def _test_vectors(self, curved: Linearization, blocks: list[int]) -> Tensor:
        """Random rows [rank, P], orthonormal within each block; a block smaller than the rank ends in rows of zeros."""
        space, rank = curved.space, min(self.rank, max(blocks))
        generator = torch.Generator(space.device).manual_seed(shared_seed(curved))
        test = torch.zeros(rank, space.size, dtype=space.dtype, device=space.device)
        for rows in test.split(blocks, 1):
            k = min(rows.shape)
            random = torch.randn(k, rows.shape[1], dtype=space.dtype, device=space.device, generator=generator)
            rows[:k] = _orthonormal(random)
        return test

    def inverse(self, estimate: Estimate, damping: float | Tensor, blocks: Sequence[int]) -> Apply:
        """R -> M^-1 r, as a square, so that rounding cannot make it indefinite.

        With E = s + wd + lambda, M = E^1/2 (I + Z'Z) E^1/2 and the eigenvalues of Z Z', which is [rank, rank] as in
        Woodbury's formula. Entries of E below `eps` times the largest eigenvalue of M's block are raised to that.
        """
        parts = []
        spread = list(blocks)
        ridge = (estimate["decay"] + damping).to(estimate["decay"].dtype)
        ridges = ridge.split(spread) if ridge.numel() > 1 else [ridge] * len(spread)
        vectors = estimate["vectors"].split(spread, dim=1)
        for rows, values, rest, own in zip(vectors, estimate["values"], estimate["rest"], ridges, strict=True):
            k = min(rows.shape)
            parts.append(_InverseOfBlock(rows[:k], values[:k], rest, own))
        return lambda r: torch.cat([part(piece) for part, piece in zip(parts, r.split(spread), strict=True)])


class _InverseOfBlock:
    """The inverse of one block of M.

    Args:
        vectors: U' [k, size].
        values: Lambda [k].
        rest: s.
        ridge: wd + lambda, [1] or [size].
    """

    def __init__(self, vectors: Tensor, values: Tensor, rest: Tensor, ridge: Tensor):
        numbers = torch.finfo(vectors.dtype)
        shift = rest + ridge
        largest = values.max() + shift.max()
        floor = torch.where(largest > numbers.tiny / numbers.eps, largest * numbers.eps, 1.0)
        self.root = torch.maximum(shift, floor).rsqrt()
        above = (values - rest).clamp(min=0)
        if shift.numel() == 1:
            self.basis, ratio = vectors, above * self.root.square()
        else:
            scaled = vectors * above.sqrt().unsqueeze(1) * self.root
            ratio, turn = torch.linalg.eigh(_gram(scaled))
            ratio = ratio.clamp(min=float(ratio[-1]) * torch.finfo(ratio.dtype).eps + numbers.tiny)
            self.basis = (turn * ratio.rsqrt()).T.to(scaled) @ scaled
            ratio = ratio.to(scaled)
        self.share = 1 - (1 + ratio).rsqrt()

    def __call__(self, r: Tensor) -> Tensor:
        x = self.root * r
        for _ in range(2):
            x = x - self.basis.T @ (self.share * (self.basis @ x))
        return self.root * x


class _Sketch:
    """What products with orthonormal vectors tell about the eigenvalues of a matrix.

    Args:
        q: the vectors as rows, k of them orthonormal and the others zero [rank, size].
        y: their products with the matrix [rank, size].

    Attributes:
        shift: rounding of the products; that of the source, with the Frobenius norm for the spectral one.
    """

    def __init__(self, q: Tensor, y: Tensor):
        k = min(q.shape)
        self.q, self.y = q[:k], y[:k]
        norm = float(torch.linalg.vector_norm(self.y, dtype=torch.float64))
        if not norm < torch.finfo(y.dtype).max ** 0.5:  # products that overflow, or whose squares would, tell nothing
            self.y, norm = torch.zeros_like(self.y), 0.0
        numbers = torch.finfo(y.dtype)
        self.shift = norm * y.shape[1] ** 0.5 * numbers.eps + numbers.tiny
        middle = (self.y @ self.q.T).double().cpu()
        self.low, self.turn = torch.linalg.eigh((middle + middle.T) / 2)

    def nystrom(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors as orthonormal rows [k, size] and eigenvalues [k], descending and >= 0, of Y (Q'Y)^-1 Y'.

        Those of `projected` where Q'Y is not positive semi-definite.
        """
        if float(self.low[0]) < -self.shift:
            return self.projected()
        shift = self.shift + max(0.0, -float(self.low[0]))
        factor = (self.turn * (self.low + shift).rsqrt()).T.to(self.q) @ torch.add(self.y, self.q, alpha=shift)
        # Of the shifted approximation, whose eigenvalues are not far below the shift. They are decomposed by their Gram
        # matrix, at a tenth of the cost of a QR decomposition of a long matrix.
        values, turn = (each.flip(-1) for each in torch.linalg.eigh(_gram(factor)))
        values = values.clamp(min=self.shift * torch.finfo(values.dtype).eps)
        return (turn * values.rsqrt()).T.to(factor) @ factor, (values - shift).clamp_(min=0).to(factor)

    def projected(self) -> tuple[Tensor, Tensor]:
        """The same of Q |Q'Y| Q', whose eigenvalues are at most the largest of the matrix in size."""
        order = self.low.abs().argsort(descending=True)
        return self.turn.T[order].to(self.q) @ self.q, self.low.abs()[order].to(self.q)


def _gram(rows: Tensor) -> Tensor:
    """Inner products of rows [k, size] -> [k, k], in double precision on the host."""
    pieces = (piece.double() for piece in rows.split(PIECE, dim=1))
    return sum((piece @ piece.T for piece in pieces), start=rows.new_zeros((), dtype=torch.float64)).cpu()


def _orthonormal(rows: Tensor) -> Tensor:
    """Random normal rows [k, size] made orthonormal; by Cholesky's factor of their Gram matrix where that is tame."""
    k, size = rows.shape
    if size < 4 * k:
        return torch.linalg.qr(rows.T).Q.T
    factor = torch.linalg.cholesky(_gram(rows))
    return torch.linalg.inv(factor).to(rows) @ rows
