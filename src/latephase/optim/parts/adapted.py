"""What rules that adapt the damping by factors have in common."""

import math
from collections.abc import Callable

from ...solve import levenberg_marquardt
from .part import Part

TRIES = 8
"""Dampings that one step tries at most, where the solver has a candidate for each."""


class Adapted(Part):
    """What rules that adapt the damping by factors have in common."""

    initial: float
    factors: tuple[float, float]
    range: tuple[float, float]

    def _check_adaptation(self) -> None:
        self._check_number("initial")
        for name in ("factors", "range"):
            self._check_pair(name)
        fall, rise = self.factors
        self._check(0 < fall <= 1 <= rise < math.inf, "factors", "(fall, rise) with 0 < fall <= 1 <= rise, finite")
        low, high = self.range
        self._check(0 <= low <= high and low < math.inf, "range", "(low, high) with 0 <= low <= high")
        if not (low <= self.initial <= high or self.initial == 0):
            raise ValueError(
                f"{type(self).__name__}.initial must be in its range {self.range} (or 0, where none is wanted), "
                f"got {self.initial!r}"
            )

    def _next(self, used: float, ratio: float, thresholds: tuple[float, float]) -> float:
        if used == 0:
            return used
        return levenberg_marquardt(used, ratio, thresholds=thresholds, factors=self.factors, bounds=self.range)


class AdaptedByThresholds(Adapted):
    """Rules whose damping rises below one reduction ratio and falls above another."""

    thresholds: tuple[float, float]

    def walk(self, start: float, ratio: Callable[[float], float]) -> float | None:
        """The damping of a step whose solver has a candidate for each: the first, rising, whose ratio is above zero.

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
            risen = min(damping * self.factors[1], self.range[1])
            if risen == damping:
                break
            damping = risen
        return None

    def next(self, used: float, ratio: float) -> float:
        """The damping of the next step.

        Args:
            used: lambda of this step.
            ratio: its reduction ratio.
        """
        return self._next(used, ratio, self.thresholds)

    def _check_thresholds(self) -> None:
        self._check_pair("thresholds")
        low, high = self.thresholds
        ordered = math.isfinite(low) and math.isfinite(high) and low <= high
        self._check(ordered, "thresholds", "finite and in rising order")
