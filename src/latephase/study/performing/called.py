"""Which functions of a user's, or of other packages, a study's file has called: said before any of them is imported."""

from collections.abc import Iterator, Mapping
from typing import Any

from ...problems.registry import factory_of


def called(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Place in the file and MODULE:FUNCTION of all functions that are not latephase's; nothing is imported.

    Args:
        table: of a study or a tuning, as it was read; it may be wrong in any way.
    """
    found = []
    if isinstance(problem := table.get("problem"), str) and (place := factory_of(problem)):
        found.append(("problem", place))
    strategies = table.get("strategies")
    for number, entry in enumerate(strategies if isinstance(strategies, list) else ()):
        name = entry.get("name", number) if isinstance(entry, dict) else number
        found += [(f"strategies.{name}", factory) for factory in dict.fromkeys(_factories(entry))]
    return found


def _factories(entry: Any) -> Iterator[str]:
    """The factories of a strategy's table: its own, those of its parts, and those that a search may put there."""
    if not isinstance(entry, dict):
        return
    if isinstance(factory := entry.get("factory"), str):
        yield factory
    parts = entry.get("parts")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict):
            yield from _factories(part.get("strategy"))
    searches = entry.get("search")
    for path, search in searches.items() if isinstance(searches, dict) else ():
        keys = path.split(".")
        choices = search.get("choices") if isinstance(search, dict) else None
        if keys[-1] == "factory" and "options" not in keys and isinstance(choices, list):
            yield from (choice for choice in choices if isinstance(choice, str))


def announcement(table: Mapping[str, Any], source: str, *, now: bool) -> Iterator[str]:
    """Lines for the terminal that name these functions; none where there are none.

    Args:
        table: of a study or a tuning.
        source: names it.
        now: whether they are about to be called.
    """
    functions = called(table)
    if functions:
        calls = "calls" if now else "would call, and does not now,"
        yield f"{source} {calls} functions that are not latephase's, of modules in this directory or installed:"
        yield from (f"  {place}: {function}" for place, function in functions)
