"""The damping of the next step: the rules there are, and what to say when adaptation has stopped to help."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ...solve import levenberg_marquardt
from .part import Part
from .state import Carried
from .target_ratio import TargetRatio

TRIES = 8
"""Dampings that one step tries at most, where the solver has a candidate for each."""
RISES = 20
"""So many rises of the damping in a row, by 3/2 each a factor of 3,000, are no search for a better one any more."""


@dataclass(frozen=True)
class LevenbergMarquardt(Part):
    """Damping that follows the reduction ratio (Martens 2010, Section 4.1).

    A ratio that is not a number says nothing and leaves the damping; so does a damping of zero, where none is wanted.

    Args:
        initial: lambda of the first step. Default 1.0 (Tatzel et al. 2022).
        thresholds: reduction ratios below which the damping rises and above which it falls. Default 1/4 and 3/4, from
            the first source.
        factors: on the damping where it falls and where it rises. Default 2/3 and 3/2, from the same source.
        range: adapted damping stays in here, so that it can always come back by factors; a warning says when it arrives
            at a bound. Default 1e-12 to 1e12.
        model: "undamped" (default, Martens' own program) or "damped": which quadratic model predicts the change. The
            damped one predicts less, so that ratios are higher and the damping falls sooner.
        data: on which data the reduction ratio takes the actual change: "evaluation" (default; as candidate and step
            size) or "objective", the data of the model that predicts it, at one more forward pass. Late in training the
            first may stay below 1/4 whatever the damping is, since a batch's gradient is mostly noise to other data;
            the damping then rises until steps are tiny. Sutskever's program takes the second. With `debias` the model
            is the evaluation data's, and so is the change in any case.

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "levenberg_marquardt"

    initial: float = 1.0
    thresholds: tuple[float, float] = (1 / 4, 3 / 4)
    factors: tuple[float, float] = (2 / 3, 3 / 2)
    range: tuple[float, float] = (1e-12, 1e12)
    model: str = "undamped"
    data: str = "evaluation"

    def __post_init__(self):
        self._check_number("initial")
        for name in ("thresholds", "factors", "range"):
            self._check_pair(name)
        low, high = self.thresholds
        ordered = math.isfinite(low) and math.isfinite(high) and low <= high
        self._check(ordered, "thresholds", "finite and in rising order")
        fall, rise = self.factors
        self._check(0 < fall <= 1 <= rise < math.inf, "factors", "(fall, rise) with 0 < fall <= 1 <= rise, finite")
        low, high = self.range
        self._check(0 <= low <= high and low < math.inf, "range", "(low, high) with 0 <= low <= high")
        if not (low <= self.initial <= high or self.initial == 0):
            raise ValueError(
                f"LevenbergMarquardt.initial must be in its range {self.range} (or 0, where none is wanted), "
                f"got {self.initial!r}"
            )
        self._check_choice("model", ("undamped", "damped"))
        self._check_choice("data", ("evaluation", "objective"))

    def walk(self, start: float, ratio: Callable[[float], float]) -> float | None:
        """The damping of a step whose solver has a candidate for each: the first that lowers the loss, rising.

        None of `TRIES` may; the step is then rejected.

        Args:
            start: lambda to begin with.
            ratio: damping -> reduction ratio of its candidate, which is then evaluated.
        """
        damping = start
        for _ in range(TRIES):
            found = ratio(damping)
            if math.isnan(found) or found > 0:
                return damping
            damping = min(damping * self.factors[1], self.range[1])
        return None

    def next(self, used: float, ratio: float) -> float:
        """The damping of the next step.

        Args:
            used: lambda of this step.
            ratio: its reduction ratio.
        """
        if used == 0:
            return used
        return levenberg_marquardt(used, ratio, thresholds=self.thresholds, factors=self.factors, bounds=self.range)


@dataclass(frozen=True)
class Fixed(Part):
    """Damping that stays as it is.

    Args:
        value: lambda.

    Raises:
        ValueError: not a finite number >= 0.
    """

    kind: ClassVar[str] = "fixed"
    model: ClassVar[str] = "undamped"
    data: ClassVar[str] = "evaluation"

    value: float

    def __post_init__(self):
        self._check_number("value")

    @property
    def initial(self) -> float:
        """Lambda of the first step."""
        return self.value

    def walk(self, start: float, ratio: Callable[[float], float]) -> float:
        """The damping of a step whose solver has a candidate for each: the one that there is.

        Args:
            start: lambda to begin with, which after `optimizer.damping = ...` may be another than `value`.
            ratio: damping -> reduction ratio of its candidate, which is then evaluated.
        """
        ratio(start)
        return start

    def next(self, used: float, ratio: float) -> float:
        """The damping of the next step, which is that of this one."""
        return used


Damping = LevenbergMarquardt | TargetRatio | Fixed
DAMPINGS: dict[str, type[Part]] = {each.kind: each for each in (LevenbergMarquardt, TargetRatio, Fixed)}
"""What there is, by kind."""


def adapt_damping(carried: Carried, used: float, ratio: float, rule: Damping) -> str | None:
    """Set the damping of the next step.

    Args:
        carried: keeps it.
        used: damping of this step.
        ratio: its reduction ratio.
        rule: gives it.

    Returns:
        A warning where the damping arrives at a bound or has risen `RISES` steps in a row; None elsewhere.
    """
    if isinstance(rule, Fixed) or used == 0 or math.isnan(ratio):
        return None
    carried.damping = damping = rule.next(used, ratio)
    if isinstance(rule, TargetRatio):
        carried.follow(damping, rule)
    rises = carried.count_rise(damping > used)
    low, high = rule.range
    if damping != used and damping == high:
        return (
            f"the damping has arrived at the upper bound {high:.3g} of its range: the model keeps failing on the "
            "evaluation data and steps are tiny; enlarge the batch, or stop"
        )
    if damping != used and damping == low:
        return (
            f"the damping has arrived at the lower bound {low:.3g} of its range: the model predicts so well that "
            "nothing needs to hold it back"
        )
    if rises == RISES:
        return (
            f"the damping has risen {RISES} steps in a row, to {damping:.3g}: the loss on the evaluation data does not "
            "follow the model whatever the damping is, and steps become tiny. Where that objective is of other "
            'data, LevenbergMarquardt(data="objective"), debias=True or damping=Fixed(...) helps; larger batches do '
            "everywhere"
        )
    return None
