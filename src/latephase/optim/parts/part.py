"""What every part of an optimizer is: settings that check themselves, compare, print, and go into a file."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self


class Part:
    """A frozen dataclass of settings.

    To write one, derive from this class, give it a `kind`, and check the fields in `__post_init__`.

    Attributes:
        kind: what tables of settings and state dicts call it.
    """

    kind: ClassVar[str]
    LOCAL: ClassVar[tuple[str, ...]] = ()
    """Fields that hold objects of this process, which a state dict leaves to the optimizer that loads it."""

    def as_dict(self) -> dict[str, Any]:
        """The kind and the fields, but for objects of this process."""
        return {"kind": self.kind} | {name: getattr(self, name) for name in names_of(type(self), self.LOCAL)}

    def changed(self, **values: Any) -> Self:
        """The part with other values of some fields."""
        return dataclasses.replace(self, **values)  # pyright: ignore[reportArgumentType]

    def _check(self, holds: bool, field: str, what: str) -> None:
        """Raise a ValueError that names part and field unless a condition holds."""
        if not holds:
            raise ValueError(f"{type(self).__name__}.{field} must be {what}, got {getattr(self, field)!r}")

    def _check_number(self, field: str) -> None:
        self._check(is_number(value := getattr(self, field)) and 0 <= value < math.inf, field, "a finite number >= 0")

    def _check_whole(self, field: str, optional: bool = False) -> None:
        value = getattr(self, field)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        what = "None or an integer >= 1" if optional else "an integer >= 1"
        self._check(whole or (optional and value is None), field, what)

    def _check_choice(self, field: str, choices: Sequence[str]) -> None:
        self._check(getattr(self, field) in choices, field, f"one of {', '.join(choices)}")

    def _check_flag(self, field: str) -> None:
        self._check(isinstance(getattr(self, field), bool), field, "True or False")

    def _check_pair(self, field: str) -> None:
        """Check a pair of numbers; one that went through a file is a list, and becomes a tuple."""
        pair = getattr(self, field)
        holds = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(map(is_number, pair))
        self._check(holds, field, "a pair of numbers")
        object.__setattr__(self, field, tuple(pair))


def plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """A param group with its parts as dicts, for a file."""
    return {name: value.as_dict() if isinstance(value, Part) else value for name, value in group.items()}


def is_number(value: Any) -> bool:
    """Whether a value is an int or float, infinity included."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def names_of(part: type, but: Sequence[str] = ()) -> list[str]:
    """The fields of a part."""
    return [field.name for field in dataclasses.fields(part) if field.name not in but]


def either(kinds: Mapping[str, type[Part]]) -> str:
    """The parts that there are, in words."""
    *others, last = [f"{kind.__name__}(...)" for kind in kinds.values()]
    return f"{', '.join(others)} or {last}" if others else last


def part_of(given: Mapping[str, Any], kinds: Mapping[str, type[Part]], like: Part | None, where: str) -> Part:
    """The part that a table of settings describes.

    Args:
        given: "kind" and fields.
        kinds: what there is, by kind; the first one is meant where nothing says the kind.
        like: gives the kind that is not said and, to a part of its own kind, the fields.
        where: the option, named in errors.

    Raises:
        ValueError: an unknown kind or field, or a field's value.
    """
    own = next(iter(kinds)) if like is None else like.kind
    fields = {name: value for name, value in given.items() if name != "kind"}
    kind = given.get("kind", own)
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{where}: kind must be one of {', '.join(kinds)}; got {kind!r}")
    known = names_of(kinds[kind])
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{where}: {kinds[kind].__name__} has no {name!r}{meant}; it has {', '.join(known)}")
    return like.changed(**fields) if like is not None and kind == own else kinds[kind](**fields)
