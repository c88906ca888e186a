"""Options of K-FAC, their checks, and the named settings of Clarke and Hernandez-Lobato (2024)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...curvature import WEIGHT_SHARING, check_whole
from ..parts import check_number

GLOBAL = (
    "exact_lr",
    "momentum",
    "damping",
    "adapt_period",
    "damping_decay",
    "damping_range",
    "reduction_ratio",
    "factor_period",
    "inverse_period",
    "factor_decay",
    "probes",
    "weight_sharing",
)
"""Options that all param groups have in common; `lr` may differ."""
_CHOICES = {"reduction_ratio": ("undamped", "damped"), "weight_sharing": WEIGHT_SHARING}

LEAST_FACTOR = 1e-6
"""The damping changes by no more in one adaptation."""

ADAPTIVE: dict[str, Any] = {"damping": 1.0, "adapt_period": 1, "damping_decay": 0.9, "inverse_period": 1}
UNADAPTIVE: dict[str, Any] = {
    "lr": 1e-3,
    "momentum": 0.9,
    "damping": 1.0,
    "adapt_period": 0,
    "inverse_period": 1,
}


def check_options(groups: Sequence[Mapping[str, Any]]) -> None:
    """Check the options of the param groups.

    Raises:
        ValueError: naming the option, its value and what would do; or an option that differs between groups.
    """
    options = groups[0]
    for index, group in enumerate(groups):
        check_number("lr", group["lr"])
        for name in GLOBAL:
            if not _same(group[name], options[name]):
                raise ValueError(
                    f"{name} must be the same in all param groups: group 0 has {options[name]!r}, group {index} has "
                    f"{group[name]!r}"
                )
    for name, choices in _CHOICES.items():
        if options[name] not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {options[name]!r}")
    for name in ("factor_period", "inverse_period", "probes"):
        check_whole(name, options[name])
    check_whole("adapt_period", options["adapt_period"], least=0)
    if options["momentum"] is not None:
        if options["exact_momentum"]:
            raise ValueError(
                f"momentum was exact (None), and has become {options['momentum']!r}: OneCycleLR and CyclicLR do that "
                "unless they are made with cycle_momentum=False. For a momentum that a schedule sets, give "
                "KFAC(momentum=...) a number"
            )
        check_number("momentum", options["momentum"])
    for name in ("damping_decay", "factor_decay"):
        check_number(name, options[name])
        if options[name] >= 1:
            raise ValueError(f"{name} must be below 1: with 1 nothing would ever move; got {options[name]!r}")
    if options["damping_decay"] ** options["adapt_period"] < LEAST_FACTOR:
        raise ValueError(
            f"damping_decay ** adapt_period must be at least {LEAST_FACTOR}: one factor on the damping would take it "
            f"out of reach of the next; got {options['damping_decay']!r} ** {options['adapt_period']!r}. "
            "adapt_period=0 keeps the damping"
        )
    _check_damping(options["damping"], options["damping_range"])


def _check_damping(damping: Any, bounds: Any) -> None:
    check_number("damping", damping)
    pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2
    if not pair or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in bounds):
        raise ValueError(f"damping_range must be a pair of numbers, got {bounds!r}")
    low, high = bounds
    if not (0 <= low < high) or math.isinf(low) or not (low <= damping <= high or damping == 0):
        raise ValueError(
            "damping_range must be (low, high) with 0 <= low < high and damping inside (or 0, where none is wanted), "
            f"got ({low!r}, {high!r}) and damping {damping!r}"
        )


def _same(value: Any, other: Any) -> bool:
    """Whether two options agree; a pair that went through a file may be a list."""
    pairs = isinstance(value, (tuple, list)) and isinstance(other, (tuple, list))
    return tuple(value) == tuple(other) if pairs else value == other
