"""Points drawn uniformly in a box, or on its surface."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """Draws points uniformly between two corners; `Box(...).surface` draws them uniformly on the faces.

    Both are drawers for `Points`: called as (n, generator) they return float64 [n, d].

    Args:
        low: the lower corner, a number for each of the d coordinates; a single number is an interval's end, d = 1.
        high: the upper corner.

    Raises:
        TypeError: corners that are no numbers.
        ValueError: corners of different length, not finite, or not in order.
    """

    low: Sequence[float] | float
    high: Sequence[float] | float

    def __post_init__(self):
        corners = [_corner(name, getattr(self, name)) for name in ("low", "high")]
        for name, corner in zip(("low", "high"), corners, strict=True):
            object.__setattr__(self, name, corner)
        if len(corners[0]) != len(corners[1]):
            raise ValueError(f"the corners of a Box have {len(corners[0])} and {len(corners[1])} coordinates")
        for axis, (low, high) in enumerate(zip(*corners, strict=True)):
            if not low < high:
                raise ValueError(f"low must be below high in each coordinate of a Box, got {low} and {high} in {axis}")

    def __call__(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Points [n, d] in the box, float64."""
        low, sides = self._low_and_sides()
        return low + sides * torch.rand(n, len(low), dtype=torch.float64, generator=generator)

    def surface(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Points [n, d] on the faces, float64: each face gets them by its area, the two ends of an interval alike."""
        low, sides = self._low_and_sides()
        points = self(n, generator)
        # A face that is normal to axis a has the area prod(sides) / sides[a]; there are two of each.
        shares = (1 / sides).cumsum(0) * sides.reciprocal().sum().reciprocal()
        axis = torch.searchsorted(shares, torch.rand(n, dtype=torch.float64, generator=generator), right=True)
        axis = axis.clamp_(max=len(low) - 1)
        upper = torch.randint(2, (n,), generator=generator)
        return points.scatter_(1, axis.unsqueeze(1), (low[axis] + upper * sides[axis]).unsqueeze(1))

    def _low_and_sides(self) -> tuple[Tensor, Tensor]:
        low, high = (torch.tensor(corner, dtype=torch.float64) for corner in (self.low, self.high))
        return low, high - low


def _corner(name: str, given: Any) -> tuple[float, ...]:
    """A corner's coordinates."""
    if isinstance(given, Tensor) or hasattr(given, "tolist"):  # NumPy's arrays and numbers, too
        given = given.tolist()
    entries = given if isinstance(given, (tuple, list)) else (given,)
    if not entries or any(isinstance(each, bool) or not isinstance(each, Real) for each in entries):
        raise TypeError(f"{name} of a Box must be a number or one for each coordinate, got {given!r}")
    corner = tuple(float(each) for each in entries)
    if not all(map(math.isfinite, corner)):
        raise ValueError(f"{name} of a Box must be finite, got {given!r}")
    return corner
