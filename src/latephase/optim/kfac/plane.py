"""The quadratic model on the plane of a direction and the last update: its coefficients, its minimiser."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...curvature import Linearization

PARALLEL = 100
"""Two directions whose common determinant is below so many units of rounding count as one."""


@dataclass(frozen=True)
class Plane:
    """The model f + g'x + 0.5 x'Cx for x in the span of one or two directions d_i.

    Attributes:
        slopes: g'd_i.
        bends: d_i'C d_j, C with the L2 term.
        squares: d_i'd_j.
        rounding: unit of rounding of these numbers.
    """

    slopes: Sequence[float]
    bends: Sequence[Sequence[float]]
    squares: Sequence[Sequence[float]]
    rounding: float

    @property
    def forms(self) -> int:
        """How many quadratic forms of C it took."""
        return 2 * len(self.slopes) - 1

    def change(self, coefficients: Sequence[float], damping: float = 0.0) -> float:
        """The model's change at sum_i c_i d_i, damping |x|^2 / 2 included."""
        pairs = [(i, j) for i in range(len(coefficients)) for j in range(len(coefficients))]
        curved = sum(coefficients[i] * coefficients[j] * self._damped(i, j, damping) for i, j in pairs)
        return sum(c * slope for c, slope in zip(coefficients, self.slopes, strict=True)) + 0.5 * curved

    def minimiser(self, fixed: Sequence[float | None], damping: float) -> list[float]:
        """The coefficients that minimise the damped model (Martens and Grosse 2015, Sections 6.4 and 7).

        Where both are free and the directions are parallel to rounding, the second one's is zero.

        Args:
            fixed: coefficients that are given; None for those that are free.
            damping: lambda.
        """
        found = [0.0 if c is None else float(c) for c in fixed]
        free = [i for i, c in enumerate(fixed) if c is None]
        pulls = [
            -self.slopes[i] - sum(self._damped(i, j, damping) * c for j, c in enumerate(found) if j not in free)
            for i in free
        ]
        if len(free) == 2:
            a, b, c = self._damped(0, 0, damping), self._damped(1, 1, damping), self._damped(0, 1, damping)
            determinant = a * b - c * c
            if determinant > PARALLEL * self.rounding * a * b:
                return [(b * pulls[0] - c * pulls[1]) / determinant, (a * pulls[1] - c * pulls[0]) / determinant]
            free = free[:1]
        for i, pull in zip(free, pulls, strict=False):
            curvature = self._damped(i, i, damping)
            found[i] = pull / curvature if curvature != 0 else math.nan if pull != 0 else 0.0
        return found

    def _damped(self, i: int, j: int, damping: float) -> float:
        return self.bends[i][j] + damping * self.squares[i][j]


def plane_of(linear: Linearization, directions: Sequence[Tensor]) -> Plane:
    """The model of a linearised objective along one or two directions [P].

    A form costs one tangent pass. The mixed one comes from that of the sum, d'Ce = (|d + e|^2 - |d|^2 - |e|^2) / 2 in
    the norm of C, with d and e scaled to length one in it, so that the small one keeps its digits.
    """
    forms = [linear.quadratic_form(d) for d in directions]
    numbers = [torch.dot(linear.gradient, d) for d in directions] + forms
    numbers += [torch.dot(d, e) for i, d in enumerate(directions) for e in directions[i:]]
    if len(directions) == 2:
        tiny = torch.finfo(forms[0].dtype).tiny
        lengths = [torch.where(f > tiny, f.sqrt(), d.norm()) for f, d in zip(forms, directions, strict=True)]
        scales = [length.clamp(min=tiny**0.5) for length in lengths]
        both = linear.quadratic_form(directions[0] / scales[0] + directions[1] / scales[1])
        apart = forms[0] / scales[0].square() + forms[1] / scales[1].square()
        numbers.append(0.5 * (both - apart) * scales[0] * scales[1])
    read = linear.objective.reduce.share(torch.stack([number.double() for number in numbers])).tolist()
    rounding = torch.finfo(forms[0].dtype).eps
    if len(directions) == 1:
        slope, bend, square = read
        return Plane((slope,), ((bend,),), ((square,),), rounding)
    first, second, bend, other, square, mixed, last, cross = read
    return Plane((first, second), ((bend, cross), (cross, other)), ((square, mixed), (mixed, last)), rounding)
