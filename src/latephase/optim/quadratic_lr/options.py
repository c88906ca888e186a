"""Options of quadratic learning rates, and their checks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..parts import DAMPINGS, Damping, DecreasingLoss, LevenbergMarquardt, Part, check_number, check_same, damping_of

CURVATURES = {"ggn": "ggn", "hessian": "hessian", "absolute_hessian": "hessian"}
"""By name the matrix of which products are taken."""
RULES: dict[str, type[Part]] = {**DAMPINGS, DecreasingLoss.kind: DecreasingLoss}
"""Rules of the damping, by kind."""
AnyDamping = Damping | DecreasingLoss

UNTUNED = LevenbergMarquardt(1e-3, factors=(0.5, 2.0), range=(1e-8, math.inf), model="damped")
"""The damping of the paper's "Untuned"; its model predicts less than the undamped one."""
REJECTING = DecreasingLoss()
"""That of the paper's SGDQLR."""

OPTIONS = ("curvature", "damping", "lr_clip", "amplification")
"""Options of the constructor."""
CARRIED: dict[str, Any] = {"adapted_damping": None, "forms": []}
"""What one step leaves to the next: the damping, and forms of data that were seen."""


def complete(groups: Sequence[dict[str, Any]], defaults: Mapping[str, Any]) -> None:
    """Give param groups what they lack of options and of what is carried: the first group's, and it the defaults."""
    for name in (*OPTIONS, *CARRIED):
        value = groups[0].setdefault(name, defaults[name])
        for group in groups:
            group.setdefault(name, value)
    for group in groups:
        group.setdefault("unit_lr", float(group["lr"]))


def over(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a preset with others in place of them; a number or a table changes what it says of the damping."""
    changed = {}
    if "damping" in given and "damping" in preset:
        changed = {"damping": damping_of(given["damping"], RULES, preset["damping"])}
    return {**preset, **given, **changed}


def check_options(groups: Sequence[dict[str, Any]], like: AnyDamping) -> None:
    """Put parts in place of shorthands, and check the options of the param groups.

    Args:
        groups: the param groups.
        like: gives what a number or a table leaves open of the damping.

    Raises:
        ValueError: naming the option, its value and what would do; or an option that differs between groups.
    """
    for group in groups:
        group["damping"] = damping_of(group["damping"], RULES, like)
        if group["curvature"] not in CURVATURES:
            raise ValueError(f"curvature must be one of {', '.join(CURVATURES)}; got {group['curvature']!r}")
        for name in ("amplification", "lr_clip"):
            if group[name] is not None or name == "amplification":
                check_number(name, group[name])
                if group[name] == 0:
                    raise ValueError(f"{name} must be above 0: with 0 no step could be taken")
    check_same(groups, OPTIONS)
