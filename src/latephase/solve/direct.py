"""Damped least squares by a direct solve, on the side that is smaller, for one damping after another."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

FACTORIZATIONS = ("auto", "cholesky", "eigh", "svd")
SIDES = ("auto", "primal", "dual")
TRIALS = 10
"""So many Cholesky decompositions cost about as much as one decomposition into eigenvectors, which serves them all."""
STRIP = 256
"""Columns of the lower triangle of a symmetric product that are computed at once."""


def digits_left(relative: float, dtype: torch.dtype) -> float:
    """Decimal digits that a solve keeps in the worst direction, where J'J or JJ' is formed.

    Args:
        relative: damping over the largest eigenvalue.
        dtype: of the computation.
    """
    return max(math.log10(max(relative, 1e-300) / torch.finfo(dtype).eps), 0.0)


def squared_suffices(relative: float, dtype: torch.dtype) -> bool:
    """Whether a damping is above the rounding of J'J or JJ': one digit is left, which is enough to go downhill."""
    return digits_left(relative, dtype) >= 1


def gram(a: Tensor) -> Tensor:
    """A A' [n, n] of a matrix [n, m]: the lower triangle; what stands above it is not to be read."""
    found = a.new_empty(len(a), len(a))
    for start in range(0, len(a), STRIP):
        found[start:, start : start + STRIP] = a[start:] @ a[start : start + STRIP].mT
    return found


@dataclass(frozen=True)
class LeastSquares:
    """The quadratic model q(p) = g'p + 0.5 p'(J'J + D)p, whose damped minimiser is solved for.

    Attributes:
        gradient: g [P].
        rows: J [R, P], or none where `matrix` is given.
        matrix: J'J [P, P], of which the lower triangle is read, or none.
        residual: r [R] with J'r the gradient but for `rest`, or none: g is then all that is known.
        rest: g - J'r [P], or none where that is zero; not read without a residual.
        diagonal: D [P] >= 0, or none: that of an L2 term.
        scale: S > 0, which the damping multiplies: one number or one per parameter [P]. Default 1.
    """

    gradient: Tensor
    rows: Tensor | None = None
    matrix: Tensor | None = None
    residual: Tensor | None = None
    rest: Tensor | None = None
    diagonal: Tensor | None = None
    scale: float | Tensor = 1.0

    def times(self, p: Tensor) -> Tensor:
        """(J'J + D) p [P]."""
        if self.rows is not None:
            found = self.rows.mT @ (self.rows @ p)
        else:
            matrix: Tensor = self.matrix  # pyright: ignore[reportAssignmentType]
            found = matrix.tril() @ p + matrix.tril(-1).mT @ p
        return found if self.diagonal is None else torch.addcmul(found, self.diagonal, p)

    def moved(self, start: Tensor) -> "LeastSquares":
        """The same model as a function of p - start, the constant left out."""
        decayed = None if self.diagonal is None else self.diagonal * start
        return dataclasses.replace(
            self,
            gradient=self.gradient + self.times(start),
            residual=None if self.residual is None or self.rows is None else self.residual + self.rows @ start,
            rest=_sum(self.rest, decayed),
        )

    @cached_property
    def ridge(self) -> float | None:
        """D / S where that is one number, which adds to the damping; None where it is not."""
        if self.diagonal is None:
            return 0.0
        quotient = self.diagonal / self.scale
        same = (quotient - quotient[0]).abs() <= 4 * torch.finfo(quotient.dtype).eps * quotient[0]
        return float(quotient[0]) if bool(same.all()) else None


_NEEDS = "needs rows, a damping that acts on all parameters, and an L2 term that is one multiple of it for all of them"


class DirectSolve:
    """The minimisers p(lambda) of the damped model q(p) + 0.5 lambda p'Sp.

    With fewer rows than parameters the dual form is solved, p = -J'(JJ' + lambda I)^-1 r, else the primal one,
    p = -(J'J + lambda I)^-1 g, with S = I and no L2 term for brevity. By itself ("auto") each damping has a Cholesky
    decomposition of its own; beyond `TRIALS` of them, one into eigenvectors serves all that follow; and where the
    damping is so small that the squared matrix has no digits left for it, QR and a singular value decomposition of J
    are taken, which do not square its condition.

    Args:
        model: the quadratic model; in the dtype of the computation.
        factorization: one of `FACTORIZATIONS`. Default "auto".
        side: one of `SIDES`. Default "auto", the smaller one; the dual one needs rows, and an L2 term that is the same
            multiple of S for all parameters.

    Attributes:
        side: "primal" or "dual".
        counts: how many decompositions of each kind there have been.

    Raises:
        ValueError: rows are needed and not given, or the dual side cannot be taken.
    """

    def __init__(self, model: LeastSquares, factorization: str = "auto", side: str = "auto"):
        self._model, self._factorization = model, factorization
        possible = self._has_rows
        if side == "dual" and not possible:
            raise ValueError(f"the dual side {_NEEDS}; take the primal one")
        if factorization == "svd" and not possible:
            raise ValueError(f"a singular value decomposition {_NEEDS}; take cholesky or eigh")
        rows = math.inf if model.rows is None else len(model.rows)
        smaller = "dual" if possible and rows < len(model.gradient) else "primal"
        self.side = smaller if side == "auto" else side
        self.counts = {"cholesky": 0, "eigh": 0, "svd": 0}
        self._factor: tuple[float, Tensor | None] | None = None

    def solve(self, damping: float, residual: Tensor | None = None) -> Tensor | None:
        """The minimiser p(lambda) [P]; None where the matrix is singular to rounding and nothing else is left to try.

        Args:
            damping: lambda >= 0.
            residual: [R], -(J'J + D + lambda S)^-1 J' times which is asked for instead; needs rows. Default none.
        """
        model = self._model
        if not math.isfinite(self.norm):
            return None
        slopes = rest = None
        if residual is None:
            residual, slopes = model.residual, model.gradient
            rest = slopes if residual is None else model.rest
        for method in self._methods(damping):
            if method == "svd":
                found = self._svd(damping, residual, rest)
            elif self.side == "dual":
                found = self._dual(damping, residual, rest, method)
            else:
                if slopes is None:
                    slopes = model.rows.mT @ residual  # pyright: ignore[reportOptionalMemberAccess, reportOperatorIssue]
                found = self._apply(damping, -slopes, method)
            if found is not None and bool(found.isfinite().all()):
                return found
        return None

    @cached_property
    def norm(self) -> float:
        """A bound on the largest eigenvalue of J'J, in the scale of the damping."""
        if self._factorization == "svd":  # which does without the squared matrix
            return float(torch.linalg.vector_norm(self._scaled).square())
        diagonal = self._squared.diagonal()
        if self.side == "primal" and self._divides:
            diagonal = self._root * diagonal * self._root
        return float(diagonal.sum())

    @cached_property
    def _has_rows(self) -> bool:
        """Whether there are rows, and all of the quadratic beside them is a multiple of S, which has an inverse."""
        return self._model.rows is not None and self._divides and self._model.ridge is not None

    def _methods(self, damping: float) -> list[str]:
        if self._factorization != "auto":
            return [self._factorization]
        if self.counts["svd"]:
            return ["svd"]
        enough = squared_suffices((damping + (self._model.ridge or 0.0)) / max(self.norm, 1e-300), self._dtype)
        if not enough and self._has_rows:
            return ["svd"]
        first = "eigh" if self.counts["eigh"] or self.counts["cholesky"] >= TRIALS else "cholesky"
        return [first, "svd" if self._has_rows else "eigh"] if self._divides else ["cholesky"]

    @property
    def _dtype(self) -> torch.dtype:
        return self._model.gradient.dtype

    @cached_property
    def _divides(self) -> bool:
        """Whether S has no zeros."""
        scale = self._model.scale
        return bool((scale > 0).all()) if isinstance(scale, Tensor) else scale > 0

    @cached_property
    def _root(self) -> float | Tensor:
        """S^(-1/2), by which parameters are scaled so that the damping is lambda I."""
        scale = self._model.scale
        return scale.rsqrt() if isinstance(scale, Tensor) else scale**-0.5

    @cached_property
    def _scaled(self) -> Tensor:
        """J S^(-1/2) [R, P]."""
        rows: Tensor = self._model.rows  # pyright: ignore[reportAssignmentType]
        return rows if isinstance(self._root, float) and self._root == 1 else rows * self._root

    @cached_property
    def _squared(self) -> Tensor:
        """JJ' [R, R] of the scaled rows, or J'J + D [P, P] as it is; the lower triangle."""
        model = self._model
        if self.side == "dual":
            return gram(self._scaled)
        matrix = model.matrix
        if matrix is None:
            matrix = gram(model.rows.mT)  # pyright: ignore[reportOptionalMemberAccess]
        if model.diagonal is not None:
            matrix = matrix + torch.diag(model.diagonal)
        return matrix

    def _dual(self, damping: float, residual: Tensor | None, rest: Tensor | None, method: str) -> Tensor | None:
        """-(J'J + D + lambda S)^-1 (J'r + g0) by way of JJ'."""
        mu = damping + (self._model.ridge or 0.0)
        right = residual
        if rest is not None:
            if mu == 0:  # what no row reaches is held by nothing
                return None
            rest = self._root * rest
            right = _sum(residual, self._scaled @ rest / -mu)
        y = None if right is None else self._apply(mu, right, method)
        if y is None:
            return None
        found = self._scaled.mT @ y
        return -self._root * (found if rest is None else found + rest / mu)

    def _apply(self, damping: float, right: Tensor, method: str) -> Tensor | None:
        """The inverse of the damped squared matrix times a vector."""
        return self._by_cholesky(damping, right) if method == "cholesky" else self._by_eigenvectors(damping, right)

    def _by_cholesky(self, damping: float, right: Tensor) -> Tensor | None:
        if self._factor is None or self._factor[0] != damping:
            self.counts["cholesky"] += 1
            matrix = self._squared.clone()
            matrix.diagonal().add_(damping if self.side == "dual" else damping * self._model.scale)
            factor, info = torch.linalg.cholesky_ex(matrix)
            self._factor = (damping, None if int(info) else factor)
        factor = self._factor[1]
        return None if factor is None else torch.cholesky_solve(right.unsqueeze(1), factor).squeeze(1)

    def _by_eigenvectors(self, damping: float, right: Tensor) -> Tensor:
        values, vectors = self._eigen
        root = self._root if self.side == "primal" else 1.0
        return root * (vectors @ (vectors.mT @ (root * right) / (values + damping)))

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the matrix in the scale in which the damping is lambda I."""
        self.counts["eigh"] += 1
        matrix = self._squared
        if self.side == "primal" and not (isinstance(self._root, float) and self._root == 1):
            root = torch.as_tensor(self._root, dtype=matrix.dtype, device=matrix.device).expand(len(matrix))
            matrix = root.unsqueeze(1) * matrix * root
        values, vectors = torch.linalg.eigh(matrix)
        return values.clamp(min=0), vectors

    @cached_property
    def _singular(self) -> tuple[Tensor, Tensor, Tensor]:
        """U [R, n], s [n] and V' [n, P] of the scaled rows, by way of QR on the longer side."""
        self.counts["svd"] += 1
        rows = self._scaled
        tall = len(rows) >= rows.shape[1]
        q, upper = torch.linalg.qr(rows if tall else rows.mT)
        u, s, vt = torch.linalg.svd(upper, full_matrices=False)
        return (q @ u, s, vt) if tall else (vt.mT, s, (q @ u).mT)

    def _svd(self, damping: float, residual: Tensor | None, rest: Tensor | None) -> Tensor:
        u, s, vt = self._singular
        mu = damping + (self._model.ridge or 0.0)
        slopes = torch.zeros_like(s) if residual is None else s * (u.mT @ residual)
        beyond = None
        if rest is not None:
            rest = self._root * rest
            inside = vt @ rest
            slopes = slopes + inside
            beyond = rest - vt.mT @ inside  # no row reaches it: only the damping holds it
        squares = s.square() + mu
        rounding = torch.finfo(s.dtype).eps * max(len(u), vt.shape[1]) * s.max() if len(s) else 0.0
        along = torch.where(s > rounding, slopes / squares, 0.0) if mu == 0 else slopes / squares
        found = vt.mT @ along
        if beyond is not None and mu > 0:
            found = found + beyond / mu
        return -self._root * found


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
