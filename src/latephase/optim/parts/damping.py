"""The damping of the next step: the rules there are, and what to say when adaptation has stopped to help.

What is common to all optimizers: a reduction ratio that is not a number says nothing and leaves the damping, a step
that something not finite spoilt has the ratio minus infinity, adapted damping stays in its range, and a damping of
zero, where none is wanted, stays.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .adapted import Adapted, AdaptedByThresholds
from .arguments import check_number
from .non_monotone import NonMonotone
from .part import Part, either, is_number, part_of
from .state import Carried
from .target_ratio import TargetRatio

MODELS = ("undamped", "damped")
"""Which quadratic model may predict the change."""
RISES = 20
"""So many rises of the damping in a row, by 3/2 each a factor of 3,000, are no search for a better one any more."""


@dataclass(frozen=True)
class LevenbergMarquardt(AdaptedByThresholds):
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
        self._check_adaptation()
        self._check_thresholds()
        self._check_choice("model", MODELS)
        self._check_choice("data", ("evaluation", "objective"))


@dataclass(frozen=True)
class DecreasingLoss(Adapted):
    """Damping that falls where the loss did not rise; otherwise the step is rejected, and the damping rises.

    For `QuadraticLearningRate` and its kin. A loss that is not a number is a rejection.

    Args:
        initial: lambda of the first step. Default 1.0, as SGDQLR of Clarke and Hernandez-Lobato (2024).
        factors: on the damping where it falls and where it rises. Default 0.9 and 2, from the same source.
        range: adapted damping stays in here. Default: all, from the same source.
        model: "damped" (default, from the same source) or "undamped": which quadratic model predicts the change of the
            reduction ratio, which is only reported.

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "decreasing_loss"
    data: ClassVar[str] = "objective"

    initial: float = 1.0
    factors: tuple[float, float] = (0.9, 2.0)
    range: tuple[float, float] = (0.0, math.inf)
    model: str = "damped"

    def __post_init__(self):
        self._check_adaptation()
        self._check_choice("model", MODELS)

    def next(self, used: float, ratio: float) -> float:
        """The damping of the next step.

        Args:
            used: lambda of this step.
            ratio: infinite where the step is accepted, minus infinite where it is rejected.
        """
        return self._next(used, ratio, (0.0, 0.0))


@dataclass(frozen=True)
class Fixed(Part):
    """Damping that stays as it is.

    Args:
        value: lambda.
        model: "undamped" (default) or "damped": which quadratic model predicts the change that is reported.

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "fixed"
    data: ClassVar[str] = "evaluation"

    value: float
    model: str = "undamped"

    def __post_init__(self):
        self._check_number("value")
        self._check_choice("model", MODELS)

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


Damping = LevenbergMarquardt | NonMonotone | TargetRatio | Fixed
DAMPINGS: dict[str, type[Part]] = {each.kind: each for each in (LevenbergMarquardt, Fixed)}
"""What every optimizer takes, by kind."""


def damping_of(given: Any, kinds: Mapping[str, type[Part]], like: Part | None) -> Any:
    """The rule that is meant: itself, or what a number or a table of its fields says.

    Args:
        given: rule, initial damping, or table.
        kinds: the rules that the optimizer takes, by kind.
        like: gives what a number or a table leaves open. Default: `LevenbergMarquardt` with its defaults.

    Raises:
        ValueError: none of these, or a field with a value that will not do.
    """
    if isinstance(given, tuple(kinds.values())):
        return given
    if isinstance(given, Mapping):
        return part_of(given, kinds, like, "damping")
    scalar = isinstance(given, Tensor) and given.numel() == 1
    if not (scalar or is_number(given) or isinstance(given, float)):
        raise ValueError(f"damping must be a number >= 0, or a part: {either(kinds)}; got {given!r}")
    check_number("damping", given)
    number = float(given)
    if like is None:
        return LevenbergMarquardt(number)
    return like.changed(value=number) if isinstance(like, Fixed) else like.changed(initial=number)


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
