"""Damping that follows the reduction ratio, where a loss may rise for a while: below the highest of the last ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .adapted import AdaptedByThresholds


@dataclass(frozen=True)
class NonMonotone(AdaptedByThresholds):
    """Levenberg and Marquardt's rule with the highest of the last losses in place of the last one.

    A candidate is taken where its loss is below the highest of the last `memory` losses (Grippo, Lampariello and Lucidi
    1986, for Newton's method), and the reduction ratio that the damping follows is that of the change from there. On a
    function with kinks, as ReLUs make, every short step from a kink may lead upwards, so that a rule that only goes
    downhill raises the damping for ever; this one passes over. On a smooth function that is easy it is the same rule,
    since losses fall and every damping falls with them.

    Goes with a solver that has a candidate for every damping (`Direct`), and losses of one function: where the loss at
    the beginning of a step is not the one at the end of the last, as on data drawn anew, those before are dropped.
    With `evaluation=` losses are those of the evaluation objective.

    Args:
        initial: lambda of the first step. Default 1.0, as in `LevenbergMarquardt`.
        memory: number of losses, that of the step's beginning included; 1 is `LevenbergMarquardt`. Default 10, from the
            source.
        thresholds: reduction ratios below which the damping rises and above which it falls. Default 1/4 and 3/4.
        factors: on the damping where it falls and where it rises. Default 2/3 and 3/2.
        range: adapted damping stays in here. Default 1e-24 to 1e12, as that of `GaussNewton`.

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "non_monotone"
    model: ClassVar[str] = "undamped"
    data: ClassVar[str] = "evaluation"

    initial: float = 1.0
    memory: int = 10
    thresholds: tuple[float, float] = (1 / 4, 3 / 4)
    factors: tuple[float, float] = (2 / 3, 3 / 2)
    range: tuple[float, float] = (1e-24, 1e12)

    def __post_init__(self):
        self._check_adaptation()
        self._check_whole("memory")
        self._check_thresholds()

    def highest(self, loss: float, before: Sequence[float], rounding: float) -> float:
        """The loss that a candidate has to be below.

        Args:
            loss: at the beginning of this step.
            before: those of the steps before, the last being that at the end of the last step.
            rounding: unit of rounding of the losses.
        """
        if self.memory == 1 or not before or not abs(before[-1] - loss) <= math.sqrt(rounding) * abs(loss):
            return loss
        return max(loss, *before[-self.memory :])

    def kept(self, loss: float, new_loss: float, before: Sequence[float], rounding: float) -> list[float]:
        """The losses that the next step is given as `before`, after one that was taken.

        Args:
            loss: at the beginning of this step.
            new_loss: at its end.
            before: those that this step was given.
            rounding: unit of rounding of the losses.
        """
        same = bool(before) and abs(before[-1] - loss) <= math.sqrt(rounding) * abs(loss)
        return [*(before if same else [loss]), new_loss][-self.memory :]
