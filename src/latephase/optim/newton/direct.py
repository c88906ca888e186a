"""The direct solve of the damped Gauss-Newton system as the solver of a Newton step."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...objective import available
from ...solve import FACTORIZATIONS, SIDES, DirectSolve, LeastSquares
from ..parts import Part
from .path import Candidate, DampingPath
from .quadratic import Quadratic


@dataclass(frozen=True)
class Direct(Part):
    """The minimisers of the damped quadratic model for one damping after another, from rows J~ with GGN = J~'J~.

    With fewer rows R than parameters P the dual system [R, R] is solved, otherwise the primal one [P, P]: R^2 P / 2 +
    R^3 / 6 or P^2 R / 2 + P^3 / 6 multiplications, and memory for J~ and the matrix (`solve.DirectSolve`).

    On sums of squared residuals each candidate is corrected for the curvature of the residuals along it, by geodesic
    acceleration (Transtrum and Sethna 2012, arXiv:1201.5885): p + a with (J'J + lambda S) a = -J'r''/2 and r''/2 the
    difference r(theta + p) - r - J p. It takes one more evaluation of the residuals and no factorisation. (The source
    takes r'' from a tenth of p; from the end of p the steps came out as good on three equations, and rounding is a
    hundred times smaller.) A correction that is long beside p says that the model fails there; it is left out then.

    Args:
        side: "primal", "dual" or "auto" (default), the smaller one.
        factorization: "cholesky", one for each damping; "eigh", eigenvectors that serve every damping; "svd", the
            same without squaring the condition of J~; or "auto" (default): the first; the second where many dampings
            are tried; the third where the damping is within rounding of J~'J~.
        dtype: of matrix and solution; a torch.dtype or its name. Default: that of the parameters. With float32
            parameters float64 keeps the digits of small singular values that J~'J~ loses.
        acceleration: longest correction, 2 |a| / |p|. Default 0.75, from the source above; 0 for none.
        max_step_norm: candidates with a longer step are scaled back to this length before they are tried. Default none:
            the damping bounds the step.

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "direct"
    candidates: ClassVar[str] = "damping"
    preconditioner: ClassVar[None] = None
    tolerance: ClassVar[float] = 0.0
    multiplies: ClassVar[bool] = False

    side: str = "auto"
    factorization: str = "auto"
    dtype: torch.dtype | None = None
    acceleration: float = 0.75
    max_step_norm: float | None = None

    def __post_init__(self):
        if isinstance(self.dtype, str):  # from a file
            object.__setattr__(self, "dtype", getattr(torch, self.dtype, self.dtype))
        self._check_choice("side", SIDES)
        self._check_choice("factorization", FACTORIZATIONS)
        self._check(self.dtype in (None, torch.float32, torch.float64), "dtype", "None, torch.float32 or torch.float64")
        self._check_number("acceleration")
        if self.max_step_norm is not None:
            self._check_number("max_step_norm")
            self._check(self.max_step_norm > 0, "max_step_norm", "None or above 0: with 0 no step could be taken")

    def expected(self, last: int | None) -> int:
        """No products with the curvature matrix."""
        return 0

    def solve(self, quadratic: Quadratic, start: Tensor | None) -> DampingPath:
        """The path of minimisers over the damping.

        Args:
            quadratic: the model; its own damping is not used, since the path has others.
            start: where the damping pulls to [P], zero where it is none.
        """
        zero = torch.zeros_like(quadratic.gradient) if start is None else start
        if not quadratic.finite:
            return DampingPath([], [], [], zero, (), (), 0)
        return DampingPath([], [], [], zero, (), (), 0, at=_Minimisers(self, quadratic, start).at)


class _Minimisers:
    """The candidates of a step, one for each damping."""

    def __init__(self, solver: Direct, quadratic: Quadratic, start: Tensor | None):
        self._quadratic, self._limit = quadratic, solver.acceleration
        self._dtype = solver.dtype or quadratic.gradient.dtype
        self._start = None if start is None else start.to(self._dtype)
        self._rows = _rows(quadratic, solver)
        self._models = self._of_blocks(solver)
        self._solves = [DirectSolve(model, solver.factorization, solver.side) for model in self._moved()]

    def _of_blocks(self, solver: Direct) -> list[LeastSquares]:
        """The model of each block."""
        quadratic, curved = self._quadratic, self._quadratic.seen.curved
        sizes, decay = quadratic.blocks, curved.decay()
        self._residual = curved.residual() if quadratic.seen.linear is curved else None
        matrices = [None] * len(sizes) if self._rows is not None else curved.gram(sizes, self._dtype)

        def pieces(vector: Tensor | float | None) -> list:
            wide = vector.to(self._dtype) if isinstance(vector, Tensor) else vector
            return list(wide.split(sizes)) if isinstance(wide, Tensor) else [wide] * len(sizes)

        return [
            LeastSquares(g, rows, matrix, None if rows is None else self._residual, rest, diagonal, scale)
            for g, rows, matrix, rest, diagonal, scale in zip(
                pieces(quadratic.gradient),
                matrices if self._rows is None else self._rows.split(sizes, dim=1),
                matrices,
                pieces(None if decay is None else decay * quadratic.space.values()),
                pieces(decay),
                pieces(quadratic.damping_scale),
                strict=True,
            )
        ]

    def _moved(self) -> list[LeastSquares]:
        if self._start is None:
            return self._models
        starts = self._start.split(self._quadratic.blocks)
        return [model.moved(start) for model, start in zip(self._models, starts, strict=True)]

    def at(self, damping: float) -> Candidate | None:
        """The candidate of a damping, corrected for the curvature of the residuals where that is known."""
        pieces = [solve.solve(damping) for solve in self._solves]
        if any(piece is None for piece in pieces):
            return None
        p = torch.cat(pieces)  # pyright: ignore[reportArgumentType, reportCallIssue]
        p = p if self._start is None else self._start + p
        if not bool(p.isfinite().all()):
            return None
        undamped = damped = p.new_zeros(())
        starts = [0.0] * len(pieces) if self._start is None else self._start.split(self._quadratic.blocks)
        for model, piece, start in zip(self._models, p.split(self._quadratic.blocks), starts, strict=True):
            pull = torch.dot(model.scale * (start - piece), piece)  # (C + lambda S) p = lambda S start - g
            undamped = undamped + 0.5 * torch.dot(model.gradient, piece) + 0.5 * damping * pull
            damped = damped + 0.5 * damping * torch.dot(model.scale * piece, piece)
        numbers = self._quadratic.share(torch.stack([undamped, undamped + damped]).double()).tolist()
        p = self._quadratic.share(p + self._acceleration(p, damping))
        return Candidate(p.to(self._quadratic.gradient.dtype), numbers[1], numbers[0])

    def _acceleration(self, p: Tensor, damping: float) -> Tensor | float:
        """-(J'J + lambda S)^-1 J'r'' / 2 [P], or zero where it is unknown or too long."""
        if not self._limit or self._residual is None or self._rows is None or len(p) == 0:
            return 0.0
        space = self._quadratic.space
        there = self._quadratic.seen.curved.residual_at(space.values() + p.to(space.dtype))
        if there is None or not bool(there.isfinite().all()):
            return 0.0
        curved = (there - self._residual).to(self._dtype) - self._rows @ p
        pieces = [solve.solve(damping, curved) for solve in self._solves]
        if any(piece is None for piece in pieces):
            return 0.0
        correction = torch.cat(pieces)  # pyright: ignore[reportArgumentType, reportCallIssue]
        lengths = self._quadratic.share(torch.stack([correction.norm(), p.norm()])).tolist()
        return correction if math.isfinite(lengths[0]) and 2 * lengths[0] <= self._limit * lengths[1] else 0.0


def _rows(quadratic: Quadratic, solver: Direct) -> Tensor | None:
    """J~ [R, P] where it is needed, or fits well into memory; None where its product is to be added up in pieces."""
    curved, dtype = quadratic.seen.curved, solver.dtype or quadratic.gradient.dtype
    count, size = curved.row_count(), quadratic.space.size
    free = min(quadratic.seen.curved.objective.reduce.gather(available(quadratic.space.device)))
    needed = count < size or solver.side == "dual" or solver.factorization == "svd"
    if not needed and count * size * dtype.itemsize > free // 4:
        return None
    return curved.rows().to(dtype)
