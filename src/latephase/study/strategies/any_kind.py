"""Any kind's table, as a study's file gives it, and what is wrong with it in words."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import Field

from ..outline import DEVICE, Table, hint
from .chain import Chain, Part
from .custom import FACTORY
from .kinds import KINDS, Single
from .late_phase import LatePhaseSteps
from .table import NAME, StrategyTable

StrategyConfig = Annotated[Single | Chain | LatePhaseSteps, Field(discriminator="kind")]
"""The table of a strategy of any kind."""
TABLES: tuple[type[Table], ...] = (*KINDS, Chain, LatePhaseSteps, Part)


def kind_of(table: type[StrategyTable]) -> str:
    """How a kind is spelt in a study's file."""
    return get_args(table.model_fields["kind"].annotation)[0]


REGISTRY: dict[str, type[StrategyTable]] = {kind_of(table): table for table in (*KINDS, Chain, LatePhaseSteps)}
"""The kinds' tables by how they are spelt."""
ALONE = [kind_of(table) for table in KINDS]
"""The kinds that may be parts of a chain."""

_PATTERNS = {
    NAME: "must begin with a letter or digit and hold letters, digits, dots and hyphens only: files are called by it",
    FACTORY: "must be PACKAGE.MODULE:FACTORY",
    DEVICE: "must be cpu or cuda",
}


def in_words(detail: Mapping[str, Any], tables: Iterable[type[Table]]) -> str:
    """One error of pydantic in words: the key's path, what is wrong and what may be meant, by the keys of `tables`."""
    *parents, last = detail["loc"] or ("",)
    path = [str(part) for part in parents if part not in REGISTRY]  # pydantic names the kind of a strategy, too
    path += [str(last)] if detail["type"] == "extra_forbidden" or last not in REGISTRY else []
    key, given, kind = ".".join(part for part in path if part), detail.get("input"), detail["type"]
    if kind == "extra_forbidden":
        known = {name for table in tables for name in table.model_fields}
        return f"unknown key {key}{hint(path[-1], sorted(known))}"
    if kind == "missing":
        said = _described(path[-1], tables)
        return f"missing key {key}{f': {said}' if said else ''}"
    if kind.startswith("union_tag"):
        return f"{key}: {_about_kind(given, ALONE if 'parts' in path else list(REGISTRY))}"
    message: str = detail["msg"].removeprefix("Value error, ")
    if kind == "string_pattern_mismatch":
        message = _PATTERNS.get(detail["ctx"]["pattern"], message)
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "must be a table"
    if kind == "literal_error" and isinstance(given, str):
        near = hint(given, re.findall("'([^']*)'", message))
        message += f", got {_shortened(given)}{near}"
    elif kind != "value_error":
        message += f", got {_shortened(given)}"
    return f"{key}: {message}" if key else message


def _described(key: str, tables: Iterable[type[Table]]) -> str:
    """What belongs at a key, as its field says in the first of the tables whose field says it."""
    fields = [table.model_fields[key] for table in tables if key in table.model_fields]
    return next((field.description for field in fields if field.description), "")


def _about_kind(table: Any, known: Sequence[str]) -> str:
    """What is wrong with the kind of a strategy's table."""
    if not isinstance(table, dict):
        return f"must be a table, got {_shortened(table)}"
    who = f"strategy {table['name']!r}" if isinstance(table.get("name"), str) else "a strategy without a name"
    kind = table.get("kind")
    if kind is None:
        near = [name for name in table if name not in ("name", "label") and difflib.get_close_matches(name, ["kind"])]
        meant = f" (did you mean it by {near[0]!r}?)" if near else ""
        return f"{who} has no kind{meant}; known kinds: {', '.join(known)}"
    return (
        f"{who} has the unknown kind {_shortened(kind)}{hint(str(kind), list(known))}; known kinds: {', '.join(known)}"
    )


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
