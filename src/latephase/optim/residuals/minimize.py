"""Minimise a sum of squared residuals: damped Gauss-Newton steps for a function of a vector."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..parts import LevenbergMarquardt, is_number
from .function import ResidualFunction
from .result import CONVERGED, EXHAUSTED, STUCK, ResidualsResult
from .steps import Point, Steps, faded

DEFAULT_DAMPING = LevenbergMarquardt(1e3, factors=(0.1, 3.0), range=(1e-16, 1e16), model="damped")
"""Cautious at first and fast to let go: the first step is a thousandth of a Gauss-Newton step in every unknown, the
fifth nearly a whole one where the model holds."""
PER_UNKNOWN = 1000
"""Default of max_nfev per unknown: the longest valley among NIST's problems, of three unknowns, takes 2,100."""
STEEP = 0.1
"""A cosine between residuals and Jacobian, where nothing lowers the cost, that no rounding explains."""
NOTHING = 16
"""A promised decrease of so many units of rounding of the cost is none; a ratio tells nothing below a quarter of it."""

_ELSEWHERE = {
    "bounds": 'take scipy.optimize.least_squares(..., method="trf"), or write the bounded unknown as a function of a '
    "free one: torch.exp(z) for a positive one, low + (high - low) * torch.sigmoid(z) between two bounds",
    "loss": "the cost is 0.5 sum r^2; for a robust loss rho give residuals sign(r) sqrt(2 rho(r))",
    "x_scale": "unknowns are scaled by the columns of the Jacobian, which needs no setting",
    "args": "write function=lambda x: f(x, *args)",
    "kwargs": "write function=lambda x: f(x, **kwargs)",
    "method": "there is one method; leave it out",
    "diff_step": "central differences take their step from the unknowns; for others give jac=",
}


def minimize_residuals(
    function: Callable[[Any], Any],
    x0: Any,
    jac: Callable[[Any], Any] | None = None,
    damping: float | LevenbergMarquardt = DEFAULT_DAMPING,
    ftol: float = 1e-8,
    xtol: float = 1e-8,
    gtol: float = 1e-8,
    max_nfev: int | None = None,
    **others: Any,
) -> ResidualsResult:
    """Minimise 0.5 |r(x)|^2 over x: nonlinear least squares, by damped Gauss-Newton steps.

    A step solves (J'J + lambda D^2) p = -J'r with J = dr/dx, corrects p for the curvature of the residuals along it by
    geodesic acceleration (Transtrum and Sethna 2012, arXiv:1201.5885), and raises lambda until the cost falls. D holds
    the norms of the columns of J, so that the units of the unknowns do not matter: their largest values so far (Moré
    1978), which fade. A trial that is not finite is a rejected trial. There may be fewer residuals than unknowns.

    All is computed in float64, whatever the dtype of x0. Residuals that come back in float32 are warned of: they leave
    seven digits, and differences of them four.

    Args:
        function: x [P] -> residuals r [N]. It gets and returns NumPy arrays where x0 is one or a list, tensors where
            x0 is a tensor; float64 in both cases.
        x0: start [P].
        jac: x [P] -> dr/dx [N, P]. Default None: with NumPy central differences, 2 P evaluations; with torch the exact
            derivatives by `torch.func`, columns where P <= N, else rows.
        damping: lambda, and the rule by which it follows the reduction ratio: `LevenbergMarquardt(...)`, or a number,
            where it begins. It is relative to the squared columns of J. Default 1e3, times 0.1 where the
            ratio is above 3/4, times 3 where it is below 1/4 or the step rejected.
        ftol: the end is where cost and model agree that a step lowers the cost by less than this part of it. Default
            1e-8.
        xtol: or where |D p| <= xtol |D x|. Default 1e-8.
        gtol: or where the cosine of the angle between r and each column of J is at most this. Default 1e-8. The three
            are those of MINPACK, of `scipy.optimize.least_squares(method="lm")`, and its defaults; 0 leaves one out.
        max_nfev: evaluations of the function at most, those for differences not counted. Default 1,000 per unknown.
        **others: nothing; options of SciPy that there are none of are errors that say what to do.

    Returns:
        ResidualsResult: x, cost, fun, jac, grad, optimality, status, message, success, nfev, njev.

    Raises:
        TypeError: no function, numbers that are not real, an option that there is none of.
        ValueError: shapes that do not fit, residuals that are not finite at x0, or change their number later; options
            out of their range; bounds.

    Example:
        >>> import numpy as np
        >>> from latephase import minimize_residuals
        >>> t, y = np.arange(4.0), np.array([2.0, 1.2, 0.75, 0.45])
        >>> fit = minimize_residuals(lambda x: x[0] * np.exp(-x[1] * t) - y, [1.0, 1.0])
        >>> fit.success, fit.x.round(3).tolist()
        (True, [1.996, 0.497])
    """
    _refuse(others)
    rule = _rule(damping)
    for name, value in (("ftol", ftol), ("xtol", xtol), ("gtol", gtol)):
        if not (is_number(value) and 0 <= value < 1):
            raise ValueError(f"{name} must be a number >= 0 and < 1, got {value!r}")
    if max_nfev is not None and (isinstance(max_nfev, bool) or not isinstance(max_nfev, int) or max_nfev < 1):
        raise ValueError(f"max_nfev must be None or an integer >= 1, got {max_nfev!r}")
    residuals = ResidualFunction(function, x0, jac)
    limit = PER_UNKNOWN * len(residuals.start) if max_nfev is None else max_nfev
    return _Descent(residuals, rule, (ftol, xtol, gtol), limit).run()


class _Descent:
    """The steps from x0 to the end."""

    def __init__(
        self,
        function: ResidualFunction,
        rule: LevenbergMarquardt,
        tolerances: tuple[float, float, float],
        limit: int,
    ):
        self._function, self._rule, self._limit = function, rule, limit
        self._ftol, self._xtol, self._gtol = tolerances
        self._damping, self._rejected = rule.initial, False
        self._point = Point.of(function.start, function.first())
        if not math.isfinite(self._point.cost):
            raise ValueError("the sum of squares at x0 overflows: divide the residuals by a constant")
        if function.rounding > torch.finfo(torch.float64).eps:
            warnings.warn(
                f"function returns residuals with {-math.log10(function.rounding):.0f} digits: cost and x cannot be "
                "better than these leave them; compute them in float64 (data and constants, too)",
                stacklevel=3,
            )
        self._typical = self._point.x.abs()
        rows = self._rows_at(self._point)
        if rows is None:
            raise ValueError("the derivatives of the residuals at x0 are not finite: begin where they are")
        self._rows = rows
        self._scale = faded(None, self._norms())
        if not bool(rows.any()) and self._point.cost > 0:
            warnings.warn(
                "no residual depends on x at x0, by its derivatives, so that nothing can be done there. With torch: is "
                "x lost on the way, by float(x), x.item(), x.detach()?",
                stacklevel=3,
            )

    def run(self) -> ResidualsResult:
        """Step until a test of convergence holds, or nothing more can be done."""
        while True:
            status, steps = self._step()
            if status is not None:
                return self._result(status, steps)

    def _step(self) -> tuple[int | None, Steps]:
        """One step: the status where it was the last one, and what was tried."""
        damped = self._rule.model == "damped"
        steps = Steps(self._function, self._point, self._rows, self._scale, damped, self._limit)
        if steps.cosine <= self._gtol:
            return 1, steps
        ratios: dict[float, float] = {}

        def ratio(damping: float) -> float:
            ratios[damping] = steps.ratio(damping)
            return ratios[damping]

        taken = self._rule.walk(self._damping, ratio)
        used = list(ratios)[-1] if taken is None else taken
        found, trial, before = ratios[used], steps.trial, self._point
        held = math.isnan(found) and trial is not None and not self._rejected and len(ratios) == 1
        held = held and (1 + used) * steps.predicted > max(self._ftol, NOTHING * self._function.rounding) * before.cost
        if held:  # the damping alone makes it too short to tell anything, and may fall
            found = math.inf
        if trial is not None and trial.cost <= before.cost and not self._move(trial):
            found, trial = -math.inf, None
        lowered = trial is not None and trial.cost <= before.cost
        self._rejected = not (lowered or held)
        status = self._converged(found, before.cost, used, steps) if lowered or math.isnan(found) else None
        if status is None and self._rejected and steps.length <= self._xtol:
            status = STUCK if self._steep(steps) else 3
        if status is None and self._function.evaluations >= self._limit:
            status = EXHAUSTED
        last, self._damping = self._damping, self._rule.next(used, found)
        if status is None and self._rejected and last == self._damping == used:  # no other damping is left
            status = STUCK if self._steep(steps) or not steps.finite else 2
        return status, steps

    def _move(self, trial: Point) -> bool:
        """Go to a trial; not where its derivatives are not finite."""
        typical = torch.maximum(trial.x.abs(), 0.5 * self._typical)
        last, self._typical = self._typical, typical
        rows = self._rows_at(trial)
        if rows is None:
            self._typical = last
            return False
        self._point, self._rows = trial, rows
        self._scale = faded(self._scale, self._norms())
        return True

    def _converged(self, ratio: float, cost: float, used: float, steps: Steps) -> int | None:
        """The status of a step that did not raise the cost, or whose change is within rounding.

        Decrease and length are about those of a step without damping: a step that is short since the damping holds it
        has not converged.
        """
        if math.isnan(ratio) and steps.trial is None:  # not evaluated
            return None
        if self._point.cost == 0:
            return 1
        if math.isnan(ratio) and self._steep(steps):
            return STUCK
        decrease = max(cost - self._point.cost, (1 + used) * steps.predicted)
        by_cost = math.isnan(ratio) or (decrease <= self._ftol * cost and ratio > 0.25)
        by_length = (1 + used) * steps.length <= self._xtol
        return 4 if by_cost and by_length else 2 if by_cost else 3 if by_length else None

    def _steep(self, steps: Steps) -> bool:
        """Whether the cost should fall, by derivatives that rounding cannot explain."""
        return steps.cosine > STEEP and float(self._point.r.norm()) > self._function.rounding**0.5 * steps.size

    def _rows_at(self, point: Point) -> Tensor | None:
        return self._function.rows(point.x, point.r, self._typical)

    def _norms(self) -> Tensor:
        return torch.linalg.vector_norm(self._rows, dim=0)

    def _result(self, status: int, steps: Steps) -> ResidualsResult:
        point, given = self._point, self._function.given
        gradient = self._rows.mT @ point.r
        if status == EXHAUSTED:
            message = f"max_nfev = {self._limit} evaluations of the function are used up"
        elif status == STUCK and not steps.finite:
            message = "no trial near x is finite: x is at the edge of where the function is defined"
        elif status == STUCK:
            message = (
                "no step lowers the cost, although by its derivatives one should: is jac that of function, and "
                "function smooth and the same at every call?"
            )
        else:
            message = CONVERGED[status]
        return ResidualsResult(
            x=given(point.x, as_x0=True),
            cost=point.cost,
            fun=given(point.r),
            jac=given(self._rows),
            grad=given(gradient),
            optimality=float(gradient.abs().max()),
            status=status,
            message=message,
            nfev=self._function.evaluations,
            njev=self._function.jacobians,
        )


def _rule(damping: Any) -> LevenbergMarquardt:
    """The part that a damping stands for."""
    if is_number(damping):
        damping = DEFAULT_DAMPING.changed(initial=damping)
    if not isinstance(damping, LevenbergMarquardt):
        raise TypeError(f"damping must be a number or LevenbergMarquardt(...), got {damping!r}")
    if damping.initial == 0 or damping.factors[1] == 1:
        raise ValueError(f"damping must be able to rise after a rejected step: begin above 0; got {damping!r}")
    return damping


def _refuse(others: Mapping[str, Any]) -> None:
    """Say what to do for an option that there is none of; bounds that bound nothing are none."""
    for name, value in others.items():
        if name == "bounds":
            if value is None or (isinstance(value, tuple) and len(value) == 2 and _unbounded(*value)):
                continue
            raise ValueError(f"minimize_residuals has no bounds: {_ELSEWHERE[name]}")
        why = f": {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise TypeError(f"minimize_residuals has no option {name!r}{why}")


def _unbounded(low: Any, high: Any) -> bool:
    return bool(np.all(np.asarray(low) == -np.inf) and np.all(np.asarray(high) == np.inf))
