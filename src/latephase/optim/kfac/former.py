"""The flat options that parts took the place of: what each is now, for errors and for states that were saved before."""

import json
from collections.abc import Mapping
from typing import Any

from ..parts import Fixed, LevenbergMarquardt
from .options import KroneckerFactors, factors_by

_FACTORS = {
    "factor_period": "period",
    "inverse_period": "inverse_period",
    "factor_decay": "decay",
    "probes": "probes",
    "weight_sharing": "weight_sharing",
}
"""Flat name -> field of `KroneckerFactors`."""
_FIELDS = {"damping_range": "range", "reduction_ratio": "model"}
"""Flat name -> field of the damping."""
_PERIOD = 5
"""Of a damping that is constant, where it says nothing."""
FORMER = ("damping_decay", *_FIELDS, *_FACTORS)


def now(name: str, value: Any) -> str | None:
    """What became of an option; None where there never was one."""
    return f"is {written(name, value)}" if name in FORMER else None


def written(name: str, value: Any) -> str:
    """How a flat option is written with parts."""
    if name in _FACTORS:
        return f"factors=KroneckerFactors({_FACTORS[name]}={value!r})"
    if name == "damping_decay":
        return (
            f'damping={{"factors": (x, 1 / x)}} with x = {value!r} ** adapt_period, or as a part '
            "damping=LevenbergMarquardt(factors=...)"
        )
    field = _FIELDS[name]
    return f'damping={{"{field}": {value!r}}}, or as a part damping=LevenbergMarquardt({field}=...)'


def in_a_table(name: str, value: Any) -> str:
    """How a flat option is written in a file."""
    if name in _FACTORS:
        return f"factors.{_FACTORS[name]} = {json.dumps(value)}"
    if name == "damping_decay":
        return f"damping.factors = [x, 1 / x] with x = {value!r} ** adapt_period"
    return f"damping.{_FIELDS[name]} = {json.dumps(value)}"


def with_parts(flat: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """A param group with flat options as one with parts.

    Args:
        flat: may leave out what it likes.
        like: a param group with parts that gives what is left out.

    Raises:
        ValueError: naming the part and the field.
    """
    given = {name: value for name, value in flat.items() if name not in FORMER}
    own = like["damping"]
    period = flat.get("adapt_period", 0 if isinstance(own, Fixed) else like["adapt_period"])
    damping, model = flat.get("damping", own.initial), flat.get("reduction_ratio", own.model)
    if period == 0:
        rule: Fixed | LevenbergMarquardt = Fixed(damping, model)
    else:
        adapted = own if isinstance(own, LevenbergMarquardt) else LevenbergMarquardt()
        decay = flat.get("damping_decay")
        rule = LevenbergMarquardt(
            damping,
            factors=adapted.factors if decay is None else factors_by(decay, period),
            range=flat.get("damping_range", adapted.range),
            model=model,
        )
    fields = {field: flat[name] for name, field in _FACTORS.items() if name in flat}
    factors: KroneckerFactors = like["factors"]
    return {
        **like,
        **given,
        "damping": rule,
        "adapt_period": period or _PERIOD,
        "factors": factors.changed(**fields),
    }
