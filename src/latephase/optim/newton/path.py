"""What a solver makes of a quadratic model: candidates, from cautious to bold."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ...solve import CGStatus
from ..parts import Part
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

    def damping(self, index: int, first: float) -> float:
        """The damping of a candidate.

        Args:
            index: of the candidate.
            first: that of the quadratic model.
        """
        return first

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
        accelerated: whether the step is corrected for the curvature of the residuals.
    """

    step: Tensor
    value: float
    undamped: float
    accelerated: bool = False


@dataclass(frozen=True)
class DirectWork:
    """What a direct solve has done.

    Attributes:
        rows: R.
        sides: "primal" or "dual", one entry per block.
        cholesky: decompositions of that kind, over all blocks.
        eigh: into eigenvectors.
        svd: into singular values.
        dampings: how many were tried, those without a candidate included.
        largest: bound on the largest eigenvalue of J~'J~ in the scale of the damping; of the block for which the
            damping is the smallest beside it.
        digits: that the damping asked about keeps beside that, see `solve.digits_left`.
    """

    rows: int = 0
    sides: tuple[str, ...] = ()
    cholesky: int = 0
    eigh: int = 0
    svd: int = 0
    dampings: int = 0
    largest: float = 0.0
    digits: float = math.inf


@dataclass(frozen=True)
class DampingPath(Path):
    """A path whose parameter is the damping: a candidate comes into being when its damping is tried.

    Attributes:
        at: damping -> candidate; None where the damped matrix is singular to rounding.
        dampings: lambda of each candidate, in the order in which they were tried.
        undamped: change of the undamped model at each.
        accelerated: whether each is corrected for the curvature of the residuals.
        work: damping that was used -> what has been done so far.
    """

    at: Callable[[float], Candidate | None] = lambda damping: None
    dampings: list[float] = field(default_factory=list)
    undamped: list[float] = field(default_factory=list)
    accelerated: list[bool] = field(default_factory=list)
    work: Callable[[float], DirectWork] = lambda damping: DirectWork()

    def change(self, index: int, damped: bool) -> float | None:
        """The change that the model with or without its damping predicts."""
        return math.fsum(self.values[index]) if damped else self.undamped[index]

    def damping(self, index: int, first: float) -> float:
        """The damping of a candidate; that of the quadratic model where there is none."""
        return self.dampings[index] if self.dampings else first

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
        self.accelerated.append(found.accelerated)
        return len(self.dampings) - 1


class Solver(Part):
    """What finds candidates: a part with the settings of one method.

    Attributes:
        multiplies: whether it asks for products with the curvature matrix.
        reweighs: whether it takes the second model of `debias`.
        shares: whether ranks share the blocks of `Blocks.group`.
        candidates: which are tried: "best" walks back from the last, "last" takes it, "damping" asks its rule.
        preconditioner: the method, or none.
        tolerance: of each block.
        max_step_norm: length to which longer candidates are scaled back, or none.
    """

    multiplies: ClassVar[bool] = True
    reweighs: ClassVar[bool] = False
    shares: ClassVar[bool] = False
    candidates: str = "best"
    preconditioner: Any = None
    tolerance: float = 0.0
    max_step_norm: float | None = None

    def expected(self, last: int | None) -> int:
        """About how many products there will be, given the iterations of the last step; None before the first."""
        raise NotImplementedError

    def solve(self, quadratic: Quadratic, start: Tensor | None) -> Path:
        """The candidates of a step.

        Args:
            quadratic: the damped model.
            start: the last path's `start` [P], or none.
        """
        raise NotImplementedError
