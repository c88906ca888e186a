"""Versioned test problems, found by name."""

from difflib import get_close_matches

from latephase.problems.digits import DIGITS
from latephase.problems.problem import Problem, Splits, TrainingSetting

__all__ = ["Problem", "Splits", "TrainingSetting", "get", "names"]

_PROBLEMS = {problem.name: problem for problem in (DIGITS,)}


def names() -> list[str]:
    """Names of all problems, in the order of their definition."""
    return list(_PROBLEMS)


def get(name: str) -> Problem:
    """Look up a problem by its name.

    Raises:
        ValueError: No problem of that name; the message lists those there are.
    """
    if name in _PROBLEMS:
        return _PROBLEMS[name]
    close = get_close_matches(name, names(), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown problem {name!r}; known problems: {', '.join(names())}.{hint}")
