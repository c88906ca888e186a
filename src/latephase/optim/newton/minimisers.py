"""The candidates of a step by a direct solve, one for each damping, from rows or from their product."""

import math
from typing import Protocol

import torch
from torch import Tensor

from ...objective import available
from ...solve import DirectSolve, LeastSquares, digits_left
from .direct_plan import DirectPlan, plan_of
from .path import Candidate, DirectWork
from .quadratic import Quadratic

ROUNDING = 8
"""A second difference of so many units of the rounding of its terms is none."""


class Settings(Protocol):
    """What is read of `Direct`."""

    @property
    def side(self) -> str:
        """Which side is solved on."""
        ...

    @property
    def factorization(self) -> str:
        """How it is solved."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """Of matrix and solution."""
        ...

    @property
    def acceleration(self) -> float:
        """The longest correction."""
        ...


class Minimisers:
    """The candidates of a step, one for each damping."""

    def __init__(self, solver: Settings, quadratic: Quadratic, start: Tensor | None):
        self._quadratic, self._limit = quadratic, solver.acceleration
        self._dtype = solver.dtype or quadratic.gradient.dtype
        self._start = None if start is None else start.to(self._dtype)
        self._share, self._tried = quadratic.share, 0
        self.plan = plan_of_step(quadratic, solver)
        self._rows = quadratic.seen.curved.rows().to(self._dtype) if self.plan.whole else None
        self._models = self._of_blocks(solver)
        self._solves = [DirectSolve(model, solver.factorization, solver.side) for model in self._moved()]

    def _of_blocks(self, solver: Settings) -> list[LeastSquares]:
        """The model of each block."""
        quadratic, curved = self._quadratic, self._quadratic.seen.curved
        sizes, decay = quadratic.blocks, curved.decay()
        known = self._rows is not None and quadratic.seen.linear is curved
        residual = curved.residual() if known else None
        self._residual = None if residual is None else residual.to(self._dtype)
        none = [None] * len(sizes)
        matrices = none if self._rows is not None else curved.gram(sizes, self._dtype)

        def pieces(vector: Tensor | float | None) -> list:
            wide = vector.to(self._dtype) if isinstance(vector, Tensor) else vector
            return list(wide.split(sizes)) if isinstance(wide, Tensor) else [wide] * len(sizes)

        return [
            LeastSquares(g, rows, matrix, self._residual, rest, diagonal, scale)
            for g, rows, matrix, rest, diagonal, scale in zip(
                pieces(quadratic.gradient),
                none if self._rows is None else self._rows.split(sizes, dim=1),
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
        """The candidate of a damping, corrected for the curvature of the residuals where that is known.

        What comes out is the first rank's, on every rank: rounding may differ, and all must decide alike.
        """
        self._tried += 1
        p = self._solved(damping)
        p = self._share(p if self._start is None else self._start + p)
        if not bool(p.isfinite().all()):
            return None
        undamped = damped = p.new_zeros(())
        sizes = self._quadratic.blocks
        starts = [0.0] * len(sizes) if self._start is None else self._start.split(sizes)
        for model, piece, start in zip(self._models, p.split(sizes), starts, strict=True):
            pull = torch.dot(model.scale * (start - piece), piece)  # (C + lambda S) p = lambda S start - g
            undamped = undamped + 0.5 * torch.dot(model.gradient, piece) + 0.5 * damping * pull
            damped = damped + 0.5 * damping * torch.dot(model.scale * piece, piece)
        numbers = self._share(torch.stack([undamped, undamped + damped]).double()).tolist()
        correction = self._acceleration(p, damping)
        p = p if correction is None else p + correction
        return Candidate(p.to(self._quadratic.gradient.dtype), numbers[1], numbers[0], correction is not None)

    def work(self, damping: float) -> DirectWork:
        """What has been done, and what it is worth at a damping."""
        counts = {kind: sum(solve.counts[kind] for solve in self._solves) for kind in ("cholesky", "eigh", "svd")}
        relative, largest = min((damping / max(solve.norm, 1e-300), solve.norm) for solve in self._solves)
        return DirectWork(
            rows=self.plan.rows,
            sides=tuple(solve.side for solve in self._solves),
            dampings=self._tried,
            largest=largest,
            digits=digits_left(relative, self._dtype),
            **counts,
        )

    def _solved(self, damping: float, residual: Tensor | None = None) -> Tensor:
        """The solution of all blocks [P]; not numbers where there is none."""
        pieces = [solve.solve(damping, residual) for solve in self._solves]
        found = [piece for piece in pieces if piece is not None]
        if len(found) < len(pieces):
            return torch.full_like(self._quadratic.gradient, math.nan, dtype=self._dtype)
        return torch.cat(found)

    def _acceleration(self, p: Tensor, damping: float) -> Tensor | None:
        """-(J'J + lambda S)^-1 J'r'' / 2 [P]; None where it is unknown, too long, or made of rounding."""
        if not self._limit or self._residual is None or self._rows is None or len(p) == 0:
            return None
        space = self._quadratic.space
        there = self._quadratic.seen.curved.residual_at(space.values() + p.to(space.dtype))
        if there is None or not bool(there.isfinite().all()):
            return None
        along = self._rows @ p
        curved = there.to(self._dtype) - self._residual - along
        sizes = torch.stack([x.norm().double() for x in (curved, there, self._residual, along)])
        bend, *terms = self._share(sizes).tolist()
        if not bend > ROUNDING * torch.finfo(there.dtype).eps * math.fsum(terms):
            return None
        correction = self._share(self._solved(damping, curved))
        length, whole = self._share(torch.stack([correction.norm(), p.norm()]).double()).tolist()
        return correction if math.isfinite(length) and 2 * length <= self._limit * whole else None


def plan_of_step(quadratic: Quadratic, solver: Settings) -> DirectPlan:
    """What the step takes; the same on all ranks.

    Raises:
        MemoryError: more than is free; nothing has been allocated.
    """
    curved, objective = quadratic.seen.curved, quadratic.seen.curved.objective
    limit = math.inf if objective.memory_limit is None else objective.memory_limit
    found = objective.reduce.gather((available(quadratic.space.device), limit))
    free, limit = (min(numbers) for numbers in zip(*found, strict=True))
    own = quadratic.gradient.dtype
    side = "primal" if solver.side == "auto" and not _has_dual(quadratic) else solver.side
    plan = plan_of(
        curved.row_count(),
        quadratic.blocks,
        solver.dtype or own,
        own,
        side,
        solver.factorization,
        min(free // 4, limit),
    )
    plan.check_fit(free)
    return plan


def _has_dual(quadratic: Quadratic) -> bool:
    """Whether the L2 term of every block is one multiple of what the damping multiplies."""
    decay, sizes, scale = quadratic.seen.curved.decay(), quadratic.blocks, quadratic.damping_scale
    if decay is None:
        return True
    scales = scale.split(sizes) if isinstance(scale, Tensor) else [scale] * len(sizes)
    pieces = zip(quadratic.gradient.split(sizes), decay.split(sizes), scales, strict=True)
    return all(LeastSquares(g, diagonal=own, scale=each).ridge is not None for g, own, each in pieces)
