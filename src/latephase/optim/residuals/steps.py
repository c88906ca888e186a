"""Damped Gauss-Newton steps from one point: one Jacobian, a step for each damping, its trial."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...solve import DirectSolve, LeastSquares, reduction_ratio, resolution
from .function import ResidualFunction

LONGEST = 0.75
"""Longest correction, 2 |a| / |p| (Transtrum and Sethna 2012, arXiv:1201.5885): beyond it the model fails there."""
FURTHER = 0.01
"""How far along a step, relative to it, residuals are taken for their second derivative. The authors take 0.1; in a
narrow curved valley the third derivative then weighs too much, and in float64 there are digits enough for less."""
ROUNDING = 4
"""A second derivative of so many units of the rounding of its residuals is none."""
FADING = 0.7
"""What is kept of the scale of an unknown from step to step; 0.55 to 0.85 do as well on NIST's problems."""


def faded(scale: Tensor | None, now: Tensor) -> Tensor:
    """The largest value so far of each entry, of which every step forgets three tenths.

    A running maximum (Moré 1978) holds an unknown where it was steep once, and is slow in valleys in which steepness
    falls by orders of magnitude; the present value alone (Marquardt 1963) lets an unknown go that has become flat.

    Args:
        scale: of the last step [P], or none.
        now: present values [P] >= 0; those of 0 keep the scale, 1 at first.
    """
    if scale is None:
        return torch.where(now > 0, now, 1.0)
    return torch.where(now > 0, torch.maximum(FADING * scale, now), scale)


@dataclass(frozen=True)
class Point:
    """Where the minimisation stands.

    Attributes:
        x: unknowns [P].
        r: residuals [N].
        cost: 0.5 |r|^2.
    """

    x: Tensor
    r: Tensor
    cost: float

    @classmethod
    def of(cls, x: Tensor, r: Tensor) -> "Point":
        """The point of unknowns and residuals."""
        return cls(x, r, 0.5 * float(torch.dot(r, r)))


class Steps:
    """The steps from a point. An unknown is measured by the norm of its column of the Jacobian.

    Args:
        function: gives the residuals.
        point: where.
        rows: J [N, P] there.
        scale: of each unknown [P] > 0: |column|, faded.
        damped: whether the damped model predicts the change.
        limit: evaluations of the function that may have been made.

    Attributes:
        cosine: largest |cos| of the angle between a column and the residuals, in which convergence is measured.
        length: |D p| of the last trial, over |D x| of the point.
        predicted: decrease of the cost that the model without damping expects of the last trial.
        trial: the point that was tried last; None where it was not finite, or was not evaluated.
        finite: whether the residuals were finite anywhere along a trial.
    """

    def __init__(self, function: ResidualFunction, point: Point, rows: Tensor, scale: Tensor, damped: bool, limit: int):
        self._function, self._point, self._damped, self._limit = function, point, damped, limit
        self._scale = scale
        self._rows = rows / scale
        self._gradient = self._rows.mT @ point.r
        self._solver = DirectSolve(LeastSquares(self._gradient, self._rows, residual=point.r))
        self.size = float((scale * point.x).norm())
        self.length, self.predicted = math.inf, math.inf
        self.trial: Point | None = None
        self.finite = False
        norms, r = torch.linalg.vector_norm(rows, dim=0), float(point.r.norm())
        # residuals are differences of what the unknowns make, which is about J x, and rounded as that is
        rounded = function.rounding * (r + float((norms * point.x).norm()))
        self._noise = ROUNDING * rounded * 2 / FURTHER**2
        cosines = (rows.mT @ (point.r / max(r, 1e-300))).abs() / torch.where(norms > 0, norms, 1.0)
        self.cosine = float(cosines.max()) if r > 0 else 0.0

    def ratio(self, damping: float) -> float:
        """The reduction ratio of a damping's step, which is tried; not a number where that can tell nothing.

        Args:
            damping: lambda, in the unit of the squared columns.
        """
        self.trial = None
        if self._function.evaluations >= self._limit:
            return math.nan
        z = self._solver.solve(damping)
        if z is None or not bool(z.isfinite().all()):
            return -math.inf
        slopes = self._rows @ z
        self.length = float(z.norm()) / self.size if self.size > 0 else math.inf
        predicted = float(torch.dot(self._gradient, z) + 0.5 * torch.dot(slopes, slopes))
        self.predicted = -predicted
        if self._damped:
            predicted += 0.5 * damping * float(torch.dot(z, z))
        near = self.predicted <= self._function.rounding**0.5 * self._point.cost  # r'' would be rounding
        correction = torch.zeros_like(z) if near else self._acceleration(z, slopes, damping)
        if correction is None or self._function.evaluations >= self._limit:
            return -math.inf
        x = self._point.x + (z + correction) / self._scale
        r = self._function.values(x)
        trial = None if r is None else Point.of(x, r)
        if trial is None or not math.isfinite(trial.cost):
            return -math.inf
        self.trial = trial
        smallest = resolution(self._point.cost, self._function.rounding)
        return reduction_ratio(trial.cost - self._point.cost, predicted, smallest)

    def _acceleration(self, z: Tensor, slopes: Tensor, damping: float) -> Tensor | None:
        """-(J'J + lambda I)^-1 J'r'' / 2 [P] with r'' along the step; None where it is too long or not finite."""
        there = self._function.values(self._point.x + FURTHER * z / self._scale)
        if there is None:
            return None
        self.finite = True
        curved = ((there - self._point.r) / FURTHER - slopes) * (2 / FURTHER)
        if float(curved.norm()) <= self._noise:
            return torch.zeros_like(z)
        found = self._solver.solve(damping, curved)
        if found is None or not 2 * float((0.5 * found).norm()) <= LONGEST * float(z.norm()):
            return None
        return 0.5 * found
