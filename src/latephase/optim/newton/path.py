"""What a solver makes of a quadratic model: candidates, from cautious to bold."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ...solve import CGStatus
from .quadratic import Quadratic


@dataclass(frozen=True)
class Path:
    """Candidates of a step, each with the change that the model predicts for it.

    Attributes:
        candidates: steps p [P] from cautious to bold, on whatever device.
        values: change of the damped model at each, one number per block.
        indices: what the report calls each: for conjugate gradients, the iteration.
        start: where the next step's solver may begin [P].
        iterations: of the solver, one entry per block.
        status: why it stopped, one entry per block.
        products: products with the curvature matrix that it asked for.
    """

    candidates: list[Tensor]
    values: list[tuple[float, ...]]
    indices: list[int]
    start: Tensor
    iterations: tuple[int, ...]
    status: tuple[CGStatus, ...]
    products: int

    def change(self, index: int, damped: bool) -> float | None:
        """The change that the model with or without its damping predicts; None where it follows from that with it."""
        return math.fsum(self.values[index]) if damped else None

    @property
    def finite(self) -> bool:
        """Whether every product was finite."""
        values = all(math.isfinite(value) for values in self.values for value in values)
        return values and CGStatus.NONFINITE not in self.status


@dataclass(frozen=True)
class Candidate:
    """What the damped model comes to at one damping.

    Attributes:
        step: p [P].
        value: change of the damped model there.
        undamped: change of the model without the damping.
    """

    step: Tensor
    value: float
    undamped: float


@dataclass(frozen=True)
class DampingPath(Path):
    """A path whose parameter is the damping: a candidate comes into being when its damping is tried.

    Attributes:
        at: damping -> candidate; None where the damped matrix is singular to rounding.
        dampings: lambda of each candidate, in the order in which they were tried.
        undamped: change of the undamped model at each.
    """

    at: Callable[[float], Candidate | None] = lambda damping: None
    dampings: list[float] = field(default_factory=list)
    undamped: list[float] = field(default_factory=list)

    def change(self, index: int, damped: bool) -> float | None:
        """The change that the model with or without its damping predicts."""
        return math.fsum(self.values[index]) if damped else self.undamped[index]

    def extend(self, damping: float) -> int | None:
        """The number of a damping's candidate, made where there is none yet; None where there can be none."""
        if damping in self.dampings:
            return self.dampings.index(damping)
        found = self.at(damping)
        if found is None or not math.isfinite(found.value):
            return None
        self.candidates.append(found.step)
        self.values.append((found.value,))
        self.indices.append(len(self.dampings))
        self.dampings.append(damping)
        self.undamped.append(found.undamped)
        return len(self.dampings) - 1


class Solver(Protocol):
    """What finds candidates: a part with the settings of one method."""

    @property
    def multiplies(self) -> bool:
        """Whether it asks for products with the curvature matrix."""
        ...

    @property
    def candidates(self) -> str:
        """Which are tried: "best" walks back from the last, "last" takes it, "damping" asks the damping's rule."""
        ...

    @property
    def max_step_norm(self) -> float | None:
        """Length to which longer candidates are scaled back, or none."""
        ...

    def expected(self, last: int | None) -> int:
        """About how many products there will be, given the iterations of the last step; None before the first."""
        ...

    def solve(self, quadratic: Quadratic, start: Tensor | None) -> Path:
        """The candidates of a step.

        Args:
            quadratic: the damped model.
            start: the last path's `start` [P], or none.
        """
        ...
