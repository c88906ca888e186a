"""Operators made of products: damping added, cross blocks left out, the dense form."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]


def damped(matvec: Matvec, damping: float | Tensor) -> Matvec:
    """V -> C v + lambda v (Tikhonov damping; Martens 2010, Section 4.1).

    Args:
        matvec: v [P] -> C v [P].
        damping: lambda, one number or one per parameter [P].
    """
    if isinstance(damping, Tensor):
        return lambda v: torch.addcmul(matvec(v), damping, v)
    return lambda v: torch.add(matvec(v), v, alpha=damping)


def block_diagonal(matvec: Matvec, block_sizes: Sequence[int]) -> Matvec:
    """The matrix with all cross blocks set to zero (Zhang et al. 2017), at one product for each block that moves.

    Args:
        matvec: v [P] -> C v [P].
        block_sizes: sizes of the consecutive blocks, summing to P.

    Returns:
        v [P] -> the product [P]; blocks where v is zero cost nothing.
    """

    def multiply(v: Tensor) -> Tensor:
        product = torch.zeros_like(v)
        for out, piece, start in zip(product.split(list(block_sizes)), v.split(list(block_sizes)), starts, strict=True):
            if piece.any():
                alone = torch.zeros_like(v)
                alone[start : start + piece.numel()] = piece
                out.copy_(matvec(alone)[start : start + piece.numel()])
        return product

    starts = [sum(block_sizes[:index]) for index in range(len(block_sizes))]
    return multiply


def dense(matvec: Matvec, size: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """The matrix [P, P], column by column; for tests and small problems.

    Args:
        matvec: v [P] -> C v [P].
        size: P.
        dtype: dtype of the unit vectors and the matrix.
        device: their device.
    """
    identity = torch.eye(size, dtype=dtype, device=device)
    return torch.stack([matvec(column) for column in identity], dim=1)
