"""Options of the quadratic learning rate, their checks, and the named settings of its paper."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from ..parts import check_number


class QuadraticOptions(TypedDict, total=False):
    """The options of `QuadraticLearningRate`, which explains them."""

    curvature: str
    damping: float
    damping_factors: tuple[float, float] | None
    damping_range: tuple[float, float]
    damping_rule: str
    reduction_ratio: str
    lr_clip: float | None
    amplification: float
    curvature_ema: float
    lr_ema: float
    absolute_curvature: bool
    gradient_clip: float | None
    direction_clip: float | None
    step_clip: float | None
    decay_per_step: float


_CHOICES = {
    "curvature": ("ggn", "hessian"),
    "damping_rule": ("ratio", "decreasing_loss"),
    "reduction_ratio": ("damped", "undamped"),
}
_CLIPS = ("lr_clip", "gradient_clip", "direction_clip", "step_clip")
CARRIED: dict[str, Any] = {"curvature_average": None, "lr_average": None, "forms": []}
"""What one step leaves to the next beside `damping`: averages, and forms of data that were seen."""

Settings = dict[str, Any]
TUNED: Settings = {"damping": 1.0, "damping_factors": (0.95, 1.0526)}
UNTUNED: Settings = {"damping": 1e-3, "damping_factors": (0.5, 2.0)}
UNTUNED_CLIPPED: Settings = UNTUNED | {"lr_clip": 0.1}
UNDAMPED: Settings = {"damping": 0.0, "damping_factors": None}
HESSIAN: Settings = TUNED | {"curvature": "hessian"}
HESSIAN_UNTUNED: Settings = {
    "curvature": "hessian",
    "damping": 1e-4,
    "damping_factors": (0.75, 2.0),
    "damping_range": (0.0, math.inf),
    "damping_rule": "decreasing_loss",
    "absolute_curvature": True,
}
SGD_QLR: Settings = {
    "damping": 1.0,
    "damping_factors": (0.9, 2.0),
    "damping_range": (0.0, math.inf),
    "damping_rule": "decreasing_loss",
}
AMPLIFIED: Settings = SGD_QLR | {"amplification": 0.5}


def complete(groups: Sequence[dict[str, Any]], defaults: Mapping[str, Any]) -> None:
    """Give param groups what they lack of options and of what is carried: the first group's, and it the defaults."""
    for name in (*QuadraticOptions.__annotations__, *CARRIED):
        value = groups[0].setdefault(name, defaults[name])
        for group in groups:
            group.setdefault(name, value)
    for group in groups:
        group.setdefault("unit_lr", float(group["lr"]))


def check_options(groups: Sequence[Mapping[str, Any]]) -> None:
    """Check the options of the param groups.

    Raises:
        ValueError: naming the option, its value and what would do; or an option that differs between groups.
    """
    options = groups[0]
    for name in QuadraticOptions.__annotations__:
        for index, group in enumerate(groups):
            if not _same(group[name], options[name]):
                raise ValueError(
                    f"{name} must be the same in all param groups: group 0 has {options[name]!r}, group {index} has "
                    f"{group[name]!r}"
                )
    for name, choices in _CHOICES.items():
        if options[name] not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {options[name]!r}")
    if not isinstance(options["absolute_curvature"], bool):
        raise ValueError(f"absolute_curvature must be True or False, got {options['absolute_curvature']!r}")
    for name in ("damping", "decay_per_step", "amplification", "curvature_ema", "lr_ema"):
        check_number(name, options[name])
    if options["amplification"] == 0:
        raise ValueError("amplification must be above 0: with 0 no step could be taken")
    for name in ("curvature_ema", "lr_ema"):
        if options[name] >= 1:
            raise ValueError(f"{name} must be below 1: with 1 the average would never move; got {options[name]!r}")
    for name in _CLIPS:
        if options[name] is not None:
            check_number(name, options[name])
            if options[name] == 0:
                raise ValueError(f"{name} must be None or above 0: with 0 no step could be taken")
    _check_damping(options["damping_factors"], options["damping_range"])


def _check_damping(factors: Any, bounds: Any) -> None:
    if factors is not None and not (_is_pair(factors) and 0 < factors[0] <= 1 <= factors[1] < math.inf):
        raise ValueError(
            f"damping_factors must be None or (fall, rise) with 0 < fall <= 1 <= rise, finite; got {factors!r}"
        )
    if not (_is_pair(bounds) and 0 <= bounds[0] <= bounds[1]):
        raise ValueError(f"damping_range must be (low, high) with 0 <= low <= high, got {bounds!r}")


def _is_pair(value: Any) -> bool:
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    return pair and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in value)


def _same(value: Any, other: Any) -> bool:
    """Whether two options agree; a pair that went through a file may be a list."""
    pairs = isinstance(value, (tuple, list)) and isinstance(other, (tuple, list))
    return tuple(value) == tuple(other) if pairs else value == other
