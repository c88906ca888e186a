"""What a user gives to `Points`, read and checked."""

import inspect
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from .drawn_points import Adaptive, Draw
from .over_terms import OverTerms
from .reading_terms import check_redrawn
from .residuals import Residuals

VERSION = 1
"""Of a state of `Points`."""
_FORM = {
    "steps": int, "redraws": int, "above": bool, "ranks": Sequence, "points": Mapping, "held_out": Mapping,
    "report": Mapping | None, "generator": Tensor,
}  # fmt: skip


def check_objective(objective: Any) -> None:
    """Refuse what has no terms.

    Raises:
        TypeError: no objective.
        ValueError: one of another kind.
    """
    if not isinstance(objective, OverTerms):
        raise TypeError(f"Points are those of an Objective, got {type(objective).__name__}")
    if not isinstance(objective.program, Residuals):
        raise ValueError("Points are those of an objective made by Objective.from_residuals; this one has no terms")


def read_drawers(draw: Any, names: Sequence[str]) -> dict[str, Draw]:
    """The drawers by name, in the order of the objective's terms.

    Raises:
        TypeError: no dict by name, or a drawer that cannot be called as (n, generator).
        ValueError: an unknown term, or no drawer.
    """
    form = 'drawers are a dict {"name": draw} with draw(n, generator) -> n points of the term'
    if not isinstance(draw, Mapping):
        raise TypeError(f"{form}; got {type(draw).__name__}")
    if not draw:
        raise ValueError(f"there is no drawer: {form}")
    check_redrawn(draw, names)
    for name, each in draw.items():
        if not callable(each):
            raise TypeError(f"the drawer of term {name!r} must be a callable, got {type(each).__name__}: {form}")
        try:
            signature = inspect.signature(each)
        except (TypeError, ValueError):  # of a builtin
            continue
        try:
            signature.bind(1, None)
        except TypeError as error:
            raise TypeError(
                f"the drawer of term {name!r} is called as draw(n, generator), but takes {signature} ({error})"
            ) from error
    return {name: draw[name] for name in names if name in draw}


def read_adaptive(adaptive: Any, names: Sequence[str]) -> dict[str, Adaptive]:
    """The rule by which the points of each term are chosen, of those that have one.

    Raises:
        TypeError: no rule.
        ValueError: one for a term without a drawer.
    """
    if adaptive is None:
        return {}
    given = adaptive if isinstance(adaptive, Mapping) else dict.fromkeys(names, adaptive)
    for name, rule in given.items():
        if name not in names:
            raise ValueError(
                f"adaptive names the term {name!r}, but drawers are given for {', '.join(map(repr, names))}"
            )
        if isinstance(rule, type) or not (hasattr(rule, "candidates") and callable(getattr(rule, "choose", None))):
            raise TypeError(f"adaptive must be RAD(...), or a dict of such by name of a term, got {rule!r}")
    return dict(given)


def whole_number(name: str, value: Any, least: int) -> int:
    """An integer.

    Raises:
        TypeError: it is none.
        ValueError: it is below the least.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} of Points must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} of Points must be at least {least}, got {value}")
    return value


def threshold(name: str, value: Any) -> float:
    """A number above 1, perhaps infinite.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above 1.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} of Points must be a number, got {value!r}")
    if math.isnan(value) or float(value) <= 1:
        raise ValueError(f"{name} of Points must be above 1 (math.inf for no warning), got {value!r}")
    return float(value)


def check_state(state: Any, names: Sequence[str], ranks: Sequence[int]) -> None:
    """Refuse a state that is not of these terms and this rank.

    Raises:
        TypeError: it is no state of `Points`.
        ValueError: it is of others.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        raise TypeError(f"this is no state of Points, but {type(state).__name__}; Points.state_dict() gives one")
    if state["version"] != VERSION:
        raise ValueError(f"the state of Points has version {state['version']!r}, this release reads {VERSION}")
    for key, kind in _FORM.items():
        if key not in state or not isinstance(state[key], kind):
            raise TypeError(f"the state of Points has no {key}, or something else in its place")
    for key in ("points", "held_out"):
        if list(state[key]) != list(names) and (state[key] or key == "points"):
            raise ValueError(f"the state has {key} of the terms {list(state[key])}, drawers are those of {list(names)}")
    if list(state["ranks"]) != list(ranks):
        (rank, size), (own, count) = state["ranks"], ranks
        raise ValueError(
            f"the state is of rank {rank} of {size}, this is rank {own} of {count}: each rank saves and loads its own, "
            "since each has points of its own"
        )
