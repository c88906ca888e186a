"""A line search for the strong Wolfe conditions, and for approximate ones where the loss has no digits left."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

NARROWEST = 1e-14
"""Relative width of an interval that is not searched further (SciPy's; a few units of rounding of the step size)."""
WIDER, WIDEST = 1.1, 4.0
"""How far beyond the last trial the next may be while nothing brackets a minimum (Moré and Thuente 1994, Section 4)."""
SHRINK = 0.66
"""An interval that has not shrunk to this part in two trials is bisected (Section 3 there); also how far into it a
trial may go that only extrapolates."""


class WolfeStatus(StrEnum):
    """How a line search ended."""

    WOLFE = "wolfe"
    """The strong Wolfe conditions hold."""
    APPROXIMATE = "approximate"
    """Those of Hager and Zhang hold: the loss has not changed by more than its rounding, and the slopes tell."""
    DECREASE = "decrease"
    """The loss falls enough, and no trial satisfied the condition on the slope as well."""
    FAILED = "failed"
    """No trial lowered the loss enough."""


@dataclass(frozen=True)
class Trial:
    """A step size with what is known there.

    Attributes:
        lr: the step size alpha.
        value: phi(alpha).
        slope: phi'(alpha).
    """

    lr: float
    value: float
    slope: float

    @property
    def finite(self) -> bool:
        """Whether value and slope are."""
        return math.isfinite(self.value) and math.isfinite(self.slope)

    def tilted(self, slope: float) -> "Trial":
        """The same of the function phi(alpha) - slope * alpha."""
        return Trial(self.lr, self.value - slope * self.lr, self.slope - slope)


@dataclass(frozen=True)
class WolfeResult:
    """Outcome of a line search.

    Attributes:
        lr: step size; 0.0 where it failed.
        value: loss there; the loss at the start where it failed.
        status: how it ended.
        trials: how often phi was computed.
    """

    lr: float
    value: float
    status: WolfeStatus
    trials: int


def wolfe(
    phi: Callable[[float], tuple[float, float]],
    f0: float,
    slope: float,
    *,
    lr: float = 1.0,
    c1: float = 1e-4,
    c2: float = 0.9,
    rounding: float = 0.0,
    max_trials: int = 25,
) -> WolfeResult:
    """Find a step size with phi(a) <= phi(0) + c1 a phi'(0) and |phi'(a)| <= c2 |phi'(0)|.

    The search is that of Moré and Thuente (1994): an interval that contains such a step is widened until it brackets
    one, and shrunk by cubic and quadratic interpolation; as long as no trial has both a low value and a rising slope,
    the function interpolated is phi(a) - c1 a phi'(0). Near a minimum differences of values are rounding while slopes
    still have digits: where phi(a) is phi(0) up to rounding, a trial with c2 phi'(0) <= phi'(a) <= (2 c1 - 1) phi'(0),
    the approximate conditions of Hager and Zhang (2005, Section 2), is taken as well.

    A trial that is not finite is an end of the interval, and the next one is nearer.

    Args:
        phi: alpha -> (f(theta + alpha p), its derivative in alpha).
        f0: phi(0).
        slope: phi'(0) < 0.
        lr: first trial. Default 1.0, the quasi-Newton step.
        c1: share of the predicted decrease that is asked for. Default 1e-4 (Nocedal and Wright 2006, Section 3.1).
        c2: share of the slope that may be left. Default 0.9, from the same source, for quasi-Newton directions.
        rounding: size up to which a difference of values tells nothing. Default 0: every one tells.
        max_trials: how often phi may be computed. Default 25, as `torch.optim.LBFGS` has it.

    Returns:
        The step size and its loss; the best one with a sufficient decrease where the slope could not be had too.

    Raises:
        ValueError: the slope is not below zero, the first trial not above, or not 0 < c1 < c2 < 1.
    """
    if not slope < 0 or not 0 < lr < math.inf:
        raise ValueError(f"wolfe needs a slope below 0 and a first trial above 0; got {slope!r} and {lr!r}")
    if not 0 < c1 < c2 < 1:
        raise ValueError(f"wolfe needs 0 < c1 < c2 < 1; got {c1!r} and {c2!r}")
    search, trials = _Search(Trial(0.0, f0, slope), c1 * slope), 0
    while trials < max_trials:
        trials += 1
        trial = Trial(lr, *phi(lr))
        status = _judged(trial, search.start, c1, c2, rounding)
        if status is not None:
            return WolfeResult(trial.lr, trial.value, status, trials)
        following = search.following(trial)
        if following is None:
            break
        lr = following
    best = search.best
    if best.value < f0 and best.value <= f0 + c1 * slope * best.lr:
        return WolfeResult(best.lr, best.value, WolfeStatus.DECREASE, trials)
    return WolfeResult(0.0, f0, WolfeStatus.FAILED, trials)


def _judged(trial: Trial, start: Trial, c1: float, c2: float, rounding: float) -> WolfeStatus | None:
    """Which conditions hold at a trial; None for none."""
    if not trial.finite:
        return None
    enough = trial.value <= start.value + c1 * trial.lr * start.slope
    if enough and abs(trial.slope) <= -c2 * start.slope:
        return WolfeStatus.WOLFE
    flat = c2 * start.slope <= trial.slope <= (2 * c1 - 1) * start.slope
    return WolfeStatus.APPROXIMATE if flat and abs(trial.value - start.value) <= rounding else None


class _Search:
    """The interval of Moré and Thuente's search.

    Args:
        start: phi at 0.
        needed: c1 phi'(0), the slope of the line that a trial must be below.

    Attributes:
        start: phi at 0.
        best: the end of the interval with the lowest value.
    """

    def __init__(self, start: Trial, needed: float):
        self.start = self.best = start
        self._needed, self._other = needed, start
        self._bracketed, self._early = False, True
        self._bounds, self._limit = (0.0, math.inf), math.inf
        self._widths = (math.inf, math.inf)

    def following(self, trial: Trial) -> float | None:
        """The step size to try after this one; None where the interval is too narrow to go on."""
        if not trial.finite:
            self._limit = self.best.lr + 0.5 * (trial.lr - self.best.lr)
            lr = self.best.lr + 0.1 * (trial.lr - self.best.lr)
            return lr if abs(lr - self.best.lr) > NARROWEST * lr else None
        line = self.start.value + trial.lr * self._needed
        if self._early and trial.value <= line and trial.slope >= 0:
            self._early = False
        tilt = self._needed if self._early and line < trial.value <= self.best.value else 0.0
        if math.isinf(self._bounds[1]):  # of the first trial
            self._bounds = (0.0, trial.lr + WIDEST * trial.lr)
        best, other, new = (each.tilted(tilt) for each in (self.best, self._other, trial))
        lr, brackets = _next_trial(best, other if self._bracketed else None, new, self._bounds)
        self._bracketed |= brackets
        self._take(trial, higher=new.value > best.value, turned=new.slope * best.slope < 0)
        return self._safe(lr, trial)

    def _take(self, trial: Trial, higher: bool, turned: bool) -> None:
        """Make the trial an end of the interval."""
        if higher:
            self._other = trial
        else:
            if turned:
                self._other = self.best
            self.best = trial

    def _safe(self, lr: float, trial: Trial) -> float | None:
        """The next trial within bounds that make the interval shrink, or grow."""
        if self._bracketed:
            width = abs(self._other.lr - self.best.lr)
            if math.isnan(lr) or width >= SHRINK * self._widths[0]:
                lr = self.best.lr + 0.5 * (self._other.lr - self.best.lr)
            self._widths = (self._widths[1], width)
            low, high = sorted((self.best.lr, self._other.lr))
            if not low < lr < high or high - low <= NARROWEST * high:
                return None
            return lr
        lr = min(lr, self._limit)
        gone = lr - self.best.lr
        self._bounds = (lr + WIDER * gone, lr + WIDEST * gone)
        return lr if lr > trial.lr else None


def _next_trial(best: Trial, other: Trial | None, new: Trial, bounds: tuple[float, float]) -> tuple[float, bool]:
    """The next trial, and whether a minimum is bracketed now (Moré and Thuente 1994, Section 4, cases 1 to 4).

    Args:
        best: the end of the interval with the lowest value.
        other: the other end; None where nothing brackets a minimum yet.
        new: the trial that was computed.
        bounds: within which the next one is, without a bracket.
    """
    cubic, secant = _cubic(best, new), _secant(best, new)
    if new.value > best.value:
        quadratic = _quadratic(best, new)
        near = abs(cubic - best.lr) < abs(quadratic - best.lr)
        return (cubic if near else cubic + 0.5 * (quadratic - cubic)), True
    if new.slope * best.slope < 0:
        return (cubic if abs(cubic - new.lr) > abs(secant - new.lr) else secant), True
    onward = math.inf if new.lr > best.lr else -math.inf
    if abs(new.slope) < abs(best.slope):
        if not (cubic - new.lr) * onward > 0:  # its minimum is behind, or there is none
            cubic = onward
        if other is None:
            farther = cubic if abs(cubic - new.lr) > abs(secant - new.lr) else secant
            return min(max(farther, bounds[0]), bounds[1]), False
        nearer = cubic if abs(cubic - new.lr) < abs(secant - new.lr) else secant
        most = new.lr + SHRINK * (other.lr - new.lr)
        return (min(nearer, most) if onward > 0 else max(nearer, most)), True
    if other is None:
        return bounds[1] if onward > 0 else bounds[0], False
    return _cubic(other, new), True


def _cubic(one: Trial, two: Trial) -> float:
    """Minimiser of the cubic with the values and slopes of two trials (Nocedal and Wright 2006, equation 3.59).

    Not a number where the cubic has none.
    """
    d1 = one.slope + two.slope - 3 * (one.value - two.value) / (one.lr - two.lr)
    largest = max(abs(d1), abs(one.slope), abs(two.slope))
    square = (d1 / largest) ** 2 - one.slope / largest * (two.slope / largest) if largest > 0 else 0.0
    if not square > 0:
        return math.nan
    d2 = math.copysign(largest * math.sqrt(square), two.lr - one.lr)
    under = two.slope - one.slope + 2 * d2
    return two.lr - (two.lr - one.lr) * (two.slope + d2 - d1) / under if under != 0 else math.nan


def _quadratic(one: Trial, two: Trial) -> float:
    """Minimiser of the parabola with the value and slope of one trial and the value of another."""
    length = two.lr - one.lr
    chord = (one.value - two.value) / length
    return one.lr + one.slope / (chord + one.slope) / 2 * length


def _secant(one: Trial, two: Trial) -> float:
    """Where the slope would vanish if it were linear."""
    change = two.slope - one.slope
    return two.lr + two.slope / change * (one.lr - two.lr) if change != 0 else math.nan
