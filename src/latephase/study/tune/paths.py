"""Paths in a strategy's table, such as "lr", "options.damping" or "options.damping.factors.0"."""

import copy
from typing import Any


def with_value(table: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a table with another value at a path such as "lr", "options.damping" or "options.betas.0".

    Raises:
        ValueError: the path leads nowhere; says what to do.
    """
    table = copy.deepcopy(table)
    *parents, last = path.split(".")
    place: Any = table
    for part in parents:
        key = _key(place, part, path)
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
    place[_key(place, last, path)] = value
    return table


def _key(place: Any, part: str, path: str) -> Any:
    if isinstance(place, dict) and not part.isdigit():
        return part
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return int(part)
    raise ValueError(
        f"{path} leads nowhere at {part!r}; for an item of a list, such as options.damping.factors.0, the strategy's "
        "own table must hold the list"
    )
