"""Values as JSON can hold them, and the strict reading of what others may have written."""

import json
import math
from typing import Any

DEEPEST = 32
"""Levels of lists and objects in a value that is read; ours have no more than five."""
LONGEST = 20
"""Digits and sign of a whole number that is read, which is what 64 bits take."""


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which strict JSON does not have; tuples become lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def canonical(value: Any, **options: Any) -> str:
    """One text for equal values: keys in order, nothing but ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), **options)


def parse(text: str) -> Any:
    """Read a JSON value and nothing that only looks like one, so that whoever goes on with it meets no surprise.

    Args:
        text: One value.

    Raises:
        ValueError: not JSON, numbers that are not finite or longer than 64 bits, a key that stands twice, or lists in
            lists without end; says which, in a few words.
    """
    try:
        value = json.loads(
            text, parse_int=_whole, parse_float=_real, parse_constant=_no_number, object_pairs_hook=_once_each
        )
        if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} levels deep") from None
    return value


def _whole(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"a number beyond what floats hold, {digits[:LONGEST]}")
    return number


def _no_number(name: str) -> Any:
    raise ValueError(f"{name}, which is no number of JSON")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return table


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted without recursion."""
    here, depth = [value], 0
    while here := [item for item in here if isinstance(item, (list, dict))]:
        here = [inner for item in here for inner in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth
