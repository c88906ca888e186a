"""The Gauss-Newton optimizer: damped least-squares steps by a direct solve."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ...parameters import ParameterSpace
from ..parts import Damping, LevenbergMarquardt, check_number, defaults_of
from .curvatures import GGN, Armijo, Blocks
from .direct import Direct
from .newton import Newton
from .outcome import Outcome
from .path import Path
from .settings import PARTS, PER_GROUP, part

NAMES = ("lr", "curvature", "solver", "damping", "line_search", "blocks", "momentum")
DEFAULT_SOLVER = Direct()
DEFAULT_DAMPING = LevenbergMarquardt(range=(1e-24, 1e12))
"""As everywhere, but for a range that goes as far down as residuals of nearly zero want it."""


class GaussNewton(Newton):
    """Damped Gauss-Newton steps by a direct solve: for sums of squared residuals, or any loss with rows.

    A step computes the rows J~ of the Gauss-Newton matrix J~'J~, solves (J~'J~ + lambda I) p = -g on the smaller side,
    corrects p for the curvature of the residuals along it, and raises lambda within the step until the loss falls.
    Nothing is sampled or truncated: on problems whose residuals can become nearly zero (physics-informed networks,
    neural potentials, implicit shapes, small regressions, the last layer of a network), with all of the data and in
    float64, a few hundred steps end orders of magnitude below first-order methods and L-BFGS in the same time. A step
    takes memory for R rows of P numbers, and time for min(R, P)^2 max(R, P) multiplications.

    A step that does not lower the loss at any damping, or meets what is not finite, leaves the parameters as they were,
    raises the damping, and says so in `report`.

    Args:
        params: parameters or param groups. A group may set `lr` and `damping_scale` (a factor on the damping, default
            1) for itself; every other option is global.
        lr: step size. Default 1.0, the Gauss-Newton step.
        curvature: "ggn" (default), or `GGN(...)` with settings of its own.
        solver: `Direct()`.
        damping: lambda, and the rule by which it follows the reduction ratio: `LevenbergMarquardt`, `NonMonotone` (for
            functions with kinks), `TargetRatio` or `Fixed`; a number is the first one's initial value. Default
            `LevenbergMarquardt(range=(1e-24, 1e12))`: with factors as small as these the damping stays above what each
            single step would like best, and ends lower than with larger factors or `TargetRatio` on the three equations
            that were tried.
        line_search: True for `Armijo()`, a part with settings of its own, or False (default): the damping is searched.
        blocks: True for `Blocks()`: curvature only within each param group. Default none, the whole matrix.
        momentum: mu of SPRING (Goldshlager, Abrahamsen and Lin 2024, arXiv:2401.10190): the damping pulls towards mu
            times the last step p instead of zero, so that steps on a few rows of the data add up. With it go fresh rows
            at every step, `damping=Fixed(...)` and a rate; the step is lr p / sqrt(1 - mu^(2(k+1))), which corrects the
            start from zero (Dangel et al. 2025, arXiv:2505.12149), or, with `Direct(max_step_norm=...)`, min(lr,
            max_step_norm / |p|) p as in the first source. Default 0.0, none.
        **others: nothing; an option that there is none of is an error.

    A part may also be given as a dict of its fields, as it stands in a file.

    Attributes:
        report: `GaussNewtonReport` of the last step; None before the first.

    Raises:
        ValueError: an unknown option value, or a global option that differs between groups.
        TypeError: an unknown option.
    """

    _kind = "GaussNewton"
    _NAMES = NAMES

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        curvature: str | GGN | Mapping[str, Any] = "ggn",
        solver: Direct | Mapping[str, Any] = DEFAULT_SOLVER,
        damping: float | Damping | Mapping[str, Any] = DEFAULT_DAMPING,
        line_search: bool | Armijo | Mapping[str, Any] = False,
        blocks: bool | Blocks | Mapping[str, Any] | None = None,
        momentum: float = 0.0,
        **others: Any,
    ):
        # Tables change what they say of these parts, whose kind they need not name.
        likes = {"solver": part("solver", solver, DEFAULT_SOLVER), "damping": part("damping", damping, DEFAULT_DAMPING)}
        given = locals() | likes
        super().__init__(params, {name: given[name] for name in NAMES}, others)

    def _check_groups(self) -> None:
        super()._check_groups()
        for group in self.param_groups:
            check_number("momentum", group["momentum"])
            if not group["momentum"] < 1:
                raise ValueError(f"momentum must be a number >= 0 and < 1, got {group['momentum']!r}")
        if not isinstance(self.param_groups[0]["solver"], Direct):
            raise ValueError("the solver of GaussNewton must be Direct(...); HessianFree takes CG(...)")

    @property
    def _momentum(self) -> float:
        return self.param_groups[0]["momentum"]

    def _start(self, space: ParameterSpace) -> Tensor | None:
        """Where the damping pulls to [P]."""
        start = self._carried.start(space) if self._momentum else None
        return None if start is None else self._momentum * start

    def _keep_start(self, space: ParameterSpace, path: Path, outcome: Outcome) -> None:
        if self._momentum:
            taken = outcome.vector is not None
            self._carried.keep_start(space, path.candidates[outcome.iteration] if taken else None)
            self._carried.moments = self._carried.moments + 1 if taken else 0

    def _rate(self, lr: float | Tensor) -> float | Tensor:
        """The step size with the bias of a momentum that began at zero taken out of it."""
        if not self._momentum or self.param_groups[0]["solver"].max_step_norm is not None:
            return lr
        return lr / math.sqrt(1 - self._momentum ** (2 * (self._carried.moments + 1)))


GaussNewton._OPTIONS = {
    **PER_GROUP,
    **{name: part(name, x) if name in PARTS else x for name, x in defaults_of(GaussNewton, "others").items()},
}
