"""Options of quasi-Newton steps: the part that says how the line search goes, and checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...solve import UPDATES
from ..parts import Part, check_number, check_same, is_number, part_of

GLOBAL = ("update", "line_search")
"""Options that all param groups have in common; `lr` may differ."""


@dataclass(frozen=True)
class Wolfe(Part):
    """The line search for the strong Wolfe conditions (`solve.wolfe`), on the objective.

    Args:
        c1: share of the predicted decrease that is asked for. Default 1e-4 (Nocedal and Wright 2006, Section 3.1).
        c2: share of the slope that may be left. Default 0.9, from the same source.
        max_trials: how often loss and gradient may be computed. Default 25, as in `torch.optim.LBFGS`.

    Raises:
        ValueError: naming the field.
    """

    kind: ClassVar[str] = "wolfe"

    c1: float = 1e-4
    c2: float = 0.9
    max_trials: int = 25

    def __post_init__(self):
        self._check(is_number(self.c1) and 0 < self.c1 < 0.5, "c1", "a number > 0 and < 0.5")
        self._check(is_number(self.c2) and self.c1 < self.c2 < 1, "c2", f"a number above c1 = {self.c1} and < 1")
        self._check_whole("max_trials")


def search_of(given: Any, like: Any = None) -> Wolfe | bool:
    """The line search that is meant: a part, False for none, True for the default, or a table of fields.

    Args:
        given: part, shorthand or table.
        like: a part that gives what a table leaves open. Default none.

    Raises:
        ValueError: none of these, or a field with a value that will not do.
    """
    if given is True:
        return Wolfe()
    if given is False or isinstance(given, Wolfe):
        return given
    if isinstance(given, Mapping):
        found: Any = part_of(given, {Wolfe.kind: Wolfe}, like if isinstance(like, Wolfe) else None, "line_search")
        return found
    raise ValueError(f"line_search must be True or False, or a part: Wolfe(...); got {given!r}")


def over(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options with others in place of them; a table changes what it says of the line search."""
    changed = {**preset, **given}
    if "line_search" in given:
        changed["line_search"] = search_of(given["line_search"], preset.get("line_search"))
    return changed


def check_options(groups: Sequence[dict[str, Any]]) -> None:
    """Put parts in place of shorthands, and check the options of the param groups.

    Raises:
        ValueError: naming the option, its value and what would do; or an option that differs between groups.
    """
    for group in groups:
        check_number("lr", group["lr"])
        if group["update"] not in UPDATES:
            raise ValueError(f"update must be one of {', '.join(UPDATES)}; got {group['update']!r}")
        group["line_search"] = search_of(group["line_search"])
    check_same(groups, GLOBAL)
