"""The damping of the longest step whose reduction ratio is still above a target."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .part import Part, is_number

WINDOW = 30
"""Steps over which the trend of the damping is looked at."""
FIRST_TURN = 80
"""Steps before which it is not."""
SLOPE, CORRELATION = 1e-4, 0.1
"""Of log10 of the damping over these steps, from which on it counts as rising."""


@dataclass(frozen=True)
class TargetRatio(Part):
    """Within each step, the smallest damping at which the model still predicts well enough (arXiv:2607.02194).

    Goes with a solver that has a candidate for every damping (`Direct`). The damping is bisected, in its logarithm,
    between a factor below and a factor above that of the last step, for the longest step whose reduction ratio is above
    the target. Where none is, but one is above zero, that with the highest is taken; where there is none, the step
    is rejected and the next one begins a factor higher. The source bisects the step's length between a third and three
    times the last one, which takes all eigenvalues; the length falls at most as the damping rises, so that the factor
    here is larger.

    There are two stages: once the damping has passed its minimum, that is when its logarithm has risen over the last 30
    steps, after 80 of them, the target is the later one for good.

    Args:
        initial: lambda of the first step. Default 1.0, as in `LevenbergMarquardt`.
        target: reduction ratio of the first stage. Default 0.075, from the source (float64; 0.1 to 0.15 in float32).
        later: of the second stage. Default 0.5, from the same source.
        factor: by how much the damping may change within a step. Default 9.
        bisections: how many times the interval is halved. Default 2: to a factor of 1.7.
        range: the damping stays in here. Default 1e-16 to 1e12.

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "target_ratio"
    model: ClassVar[str] = "undamped"
    data: ClassVar[str] = "evaluation"
    window: ClassVar[int] = WINDOW

    initial: float = 1.0
    target: float = 0.075
    later: float = 0.5
    factor: float = 9.0
    bisections: int = 2
    range: tuple[float, float] = (1e-16, 1e12)

    def __post_init__(self):
        self._check_number("initial")
        for name in ("target", "later"):
            self._check(is_number(value := getattr(self, name)) and 0 < value < 1, name, "a number > 0 and < 1")
        self._check(is_number(self.factor) and 1 < self.factor < math.inf, "factor", "a finite number > 1")
        self._check_whole("bisections")
        self._check_pair("range")
        low, high = self.range
        self._check(0 < low <= high < math.inf, "range", "(low, high) with 0 < low <= high, finite")
        self._check(low <= self.initial <= high, "initial", f"in its range {self.range}")

    def in_stage(self, late: bool) -> "TargetRatio":
        """The rule of the first stage, or of the second."""
        return self.changed(target=self.later) if late else self

    def turns(self, dampings: Sequence[float], steps: int) -> bool:
        """Whether the second stage begins.

        Args:
            dampings: of the last `WINDOW` steps.
            steps: how many there have been in all.
        """
        if steps < FIRST_TURN or len(dampings) < WINDOW:
            return False
        logs, order = np.log10(dampings), np.arange(len(dampings))
        if np.ptp(logs) == 0:
            return False
        slope = float(np.polyfit(order, logs, 1)[0])
        return slope > SLOPE and float(np.corrcoef(order, logs)[0, 1]) > CORRELATION

    def walk(self, start: float, ratio: Callable[[float], float]) -> float | None:
        """The damping of a step, see the class; None where no damping that was tried lowers the loss.

        Args:
            start: lambda to begin with.
            ratio: damping -> reduction ratio of its candidate, which is then evaluated.
        """
        tried = {start: ratio(start)}

        def predicted_well(damping: float) -> bool:
            if damping not in tried:
                tried[damping] = ratio(damping)
            return tried[damping] > self.target

        if math.isnan(tried[start]):
            return start
        if predicted_well(start):
            bold, cautious = max(start / self.factor, self.range[0]), start
            if predicted_well(bold):
                return bold
        else:
            bold, cautious = start, min(start * self.factor, self.range[1])
        if predicted_well(cautious):
            for _ in range(self.bisections):
                middle = math.sqrt(bold * cautious)
                bold, cautious = (bold, middle) if predicted_well(middle) else (middle, cautious)
            return cautious
        best = max(tried, key=lambda damping: tried[damping])
        return best if tried[best] > 0 else None

    def next(self, used: float, ratio: float) -> float:
        """The damping that the next step begins with.

        Args:
            used: lambda of this step, the last that was tried where it was rejected.
            ratio: its reduction ratio.
        """
        if math.isnan(ratio) or ratio > 0:
            return used
        return min(max(used * self.factor, self.range[0]), self.range[1])
