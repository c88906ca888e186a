"""A matrix seen through a few products: its symmetry and the ends of its spectrum."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Probe:
    """What a few products say about a matrix C.

    Attributes:
        asymmetry: |V'CV - (V'CV)'| / |V'CV| on the basis V.
        lowest: the smallest eigenvalue of the symmetric part of V'CV; C has one as small or smaller, if symmetric.
        highest: the largest, with the same meaning.
    """

    asymmetry: float
    lowest: float
    highest: float


def probe(matvec: Callable[[Tensor], Tensor], start: Tensor, products: int) -> Probe:
    """Project a matrix on the Krylov space of a start (Arnoldi 1951).

    For a symmetric matrix the projection is tridiagonal and its eigenvalues run to the ends of the spectrum. For any
    other the entries above the diagonal are not those below. Random u, v would hardly see it: in P dimensions u'Cv is
    smaller than |u| |Cv| by sqrt(P), with the difference drowned in rounding.

    Args:
        matvec: v [P] -> C v [P].
        start: vector [P], not zero.
        products: how many are taken; fewer where the space ends before.
    """
    projected = projection(matvec, start, products)
    if not bool(projected.isfinite().all()):
        return Probe(math.nan, math.nan, math.nan)
    values = torch.linalg.eigvalsh((projected + projected.T) / 2)
    norm = float(projected.norm())
    asymmetry = float((projected - projected.T).norm()) / norm if norm else 0.0
    return Probe(asymmetry, float(values[0]), float(values[-1]))


def projection(matvec: Callable[[Tensor], Tensor], start: Tensor, products: int) -> Tensor:
    """V'CV [products, products] on an orthonormal basis V of the Krylov space of a start, in float64.

    Args:
        matvec: v [P] -> C v [P].
        start: vector [P], not zero; the first of the basis, but for its length.
        products: how many are taken; fewer where the space ends before.
    """
    basis = [start / start.norm()]
    columns: list[list[float]] = []
    scale = 0.0
    for _ in range(min(products, start.numel())):
        image = matvec(basis[-1])
        scale = max(scale, float(image.norm()))
        entries = [0.0] * len(basis)
        rest = image
        for _ in range(2):  # orthogonal to rounding
            for i, v in enumerate(basis):
                share = float(torch.dot(v, rest))
                entries[i] += share
                rest = rest - share * v
        length = float(rest.norm())
        columns.append([*entries, length])
        if not length > 1e3 * torch.finfo(rest.dtype).eps * scale:
            break
        basis.append(rest / length)
    size = len(columns)
    projected = torch.zeros(size, size, dtype=torch.float64)
    for j, column in enumerate(columns):
        for i, entry in enumerate(column[:size]):
            projected[i, j] = entry
    return projected
