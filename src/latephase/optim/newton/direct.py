"""The direct solve of the damped Gauss-Newton system as the solver of a Newton step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...solve import FACTORIZATIONS, SIDES
from .direct_plan import DirectPlan, plan_of
from .minimisers import Minimisers
from .path import DampingPath, Solver
from .quadratic import Quadratic


@dataclass(frozen=True)
class Direct(Solver):
    """The minimisers of the damped quadratic model for one damping after another, from rows J~ with GGN = J~'J~.

    With fewer rows R than parameters P the dual system [R, R] is solved, otherwise the primal one [P, P]: R^2 P / 2 +
    R^3 / 6 or P^2 R / 2 + P^3 / 6 multiplications, and memory for J~ and the matrix, which `plan` tells beforehand
    (`solve.DirectSolve`).

    On sums of squared residuals each candidate is corrected for the curvature of the residuals along it, by geodesic
    acceleration (Transtrum and Sethna 2012, arXiv:1201.5885): p + a with (J'J + lambda S) a = -J'r''/2 and r''/2 the
    difference r(theta + p) - r - J p. It takes one more evaluation of the residuals and no factorisation. (The source
    takes r'' from a tenth of p; from the end of p the steps came out as good on three equations, and rounding is a
    hundred times smaller.) A correction that is long beside p says that the model fails there; it is left out then,
    and so is one made of a difference within rounding. It is known of squared errors, of `from_residuals`, and of
    `from_forward` where the loss has the same second derivatives in the outputs at both points; not with structural
    damping, whose strength is that of the damping with which the step begins.

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
    candidates = "damping"
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

    def plan(
        self, rows: int, size: int | Sequence[int], dtype: torch.dtype = torch.float32, room: float | None = None
    ) -> DirectPlan:
        """What a step takes, before it is taken.

        Args:
            rows: R of J~, see `curvature.Linearization.row_count`: numbers of residuals, or rows times classes.
            size: P, or the sizes of the blocks.
            dtype: of the parameters. Default torch's own.
            room: bytes that J~ may take where a sum over pieces of it would do. Default: as many as it takes; a step
                has a quarter of what is free, and the curvature objective's `memory_limit` where that is less.
        """
        blocks = [size] if isinstance(size, int) else list(size)
        room = math.inf if room is None else room
        return plan_of(rows, blocks, self.dtype or dtype, dtype, self.side, self.factorization, room)

    def solve(self, quadratic: Quadratic, start: Tensor | None) -> DampingPath:
        """The path of minimisers over the damping.

        Args:
            quadratic: the model; its own damping is not used, since the path has others.
            start: where the damping pulls to [P], zero where it is none.
        """
        zero = torch.zeros_like(quadratic.gradient) if start is None else start
        if not quadratic.finite:
            return DampingPath([], [], [], zero, (), (), 0)
        found = Minimisers(self, quadratic, start)
        return DampingPath([], [], [], zero, (), (), 0, at=found.at, work=found.work)
