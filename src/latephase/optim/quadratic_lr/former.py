"""The flat options that there were: what each is now, for errors and for states that were saved before."""

import json
from collections.abc import Mapping
from typing import Any

from ..parts import DecreasingLoss, Fixed, LevenbergMarquardt
from .options import AnyDamping

GONE: dict[str, Any] = {
    "curvature_ema": 0.0,
    "lr_ema": 0.0,
    "gradient_clip": None,
    "direction_clip": None,
    "step_clip": None,
    "decay_per_step": 0.0,
}
"""Options that there are no more, and the values at which they did nothing."""
_FIELDS = {"damping_factors": "factors", "damping_range": "range", "reduction_ratio": "model"}
"""Flat name -> field of the damping."""
_CARRIED = ("curvature_average", "lr_average")
"""What averages that there are no more left to the next step."""
FORMER = (*_FIELDS, "damping_rule", "absolute_curvature", *GONE, *_CARRIED)


def now(name: str, value: Any) -> str | None:
    """What became of an option; None where there never was one."""
    if name in GONE or name in _CARRIED:
        return "is there no more; nothing takes its place"
    return f"is {written(name, value)}" if name in FORMER else None


def written(name: str, value: Any) -> str:
    """How a flat option is written with parts."""
    if name == "damping_rule":
        return "damping=DecreasingLoss(...)" if value == "decreasing_loss" else "damping=LevenbergMarquardt(...)"
    if name == "absolute_curvature":
        return 'curvature="absolute_hessian"' if value else "the default: leave it out"
    if name == "damping_factors" and value is None:
        return "damping=Fixed(...)"
    field = _FIELDS[name]
    return f'damping={{"{field}": {value!r}}}, or as a part damping=LevenbergMarquardt({field}=...)'


def in_a_table(name: str, value: Any) -> str:
    """How a flat option is written in a file."""
    if name in GONE or name in _CARRIED:
        return "there no more; nothing takes its place"
    if name == "damping_rule":
        return f'damping.kind = "{"decreasing_loss" if value == "decreasing_loss" else "levenberg_marquardt"}"'
    if name == "damping_factors" and value is None:
        return 'damping.kind = "fixed"'
    return written(name, value) if name not in _FIELDS else f"damping.{_FIELDS[name]} = {json.dumps(value)}"


def with_parts(flat: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """A param group with flat options as one with parts; its damping, which was the adapted one, is carried.

    Args:
        flat: may leave out what it likes.
        like: a param group with parts that gives what is left out.

    Raises:
        ValueError: an option that there is no more had a value at which it did something; or naming part and field.
    """
    for name, value in GONE.items():
        if flat.get(name, value) != value:
            raise ValueError(
                f"{name} was {flat[name]!r}, and there is no such option any more: this training cannot be continued"
            )
    curvature = flat.get("curvature", like["curvature"])
    if flat.get("absolute_curvature"):
        if curvature == "ggn":
            raise ValueError("absolute_curvature was True with the curvature 'ggn', and goes with the Hessian only now")
        curvature = "absolute_hessian"
    given = {name: value for name, value in flat.items() if name not in FORMER}
    rule, carried = _damping(flat, like["damping"], like.get("adapted_damping"))
    return {**like, **given, "curvature": curvature, "damping": rule, "adapted_damping": carried}


def _damping(flat: Mapping[str, Any], own: AnyDamping, adapted: float | None) -> tuple[AnyDamping, Any]:
    """The rule, with the optimizer's own initial value, which flat options do not keep, and the damping as it was."""
    damping = flat.get("damping", own.initial if adapted is None else adapted)
    known = own if isinstance(own, LevenbergMarquardt | DecreasingLoss) else LevenbergMarquardt()
    factors = flat.get("damping_factors", None if isinstance(own, Fixed) else known.factors)
    model = flat.get("reduction_ratio", own.model)
    if factors is None:
        return Fixed(damping, model), None
    kind = "decreasing_loss" if isinstance(own, DecreasingLoss) else "ratio"
    make = {"ratio": LevenbergMarquardt, "decreasing_loss": DecreasingLoss}.get(flat.get("damping_rule", kind))
    if make is None:
        raise ValueError(f"damping_rule must be one of ratio, decreasing_loss; got {flat['damping_rule']!r}")
    bounds = flat.get("damping_range", known.range)
    rule = make(0.0, factors=factors, range=bounds, model=model)
    low, high = rule.range
    return rule.changed(initial=min(max(own.initial, low), high)), damping
