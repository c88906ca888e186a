"""Where problems are found: this package's table, entry points of installed packages, and PACKAGE.MODULE:FACTORY."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from ..user_code import FactoryError, function_named
from .summaries import SUMMARIES

if TYPE_CHECKING:
    from .problem import Problem

ENTRY_POINTS = "latephase.problems"
"""The group of entry points in which an installed package names its problems."""


class ProblemError(ValueError):
    """There is no such problem, it does not take these options, or what makes it returns something else."""


def names() -> list[str]:
    """Names of all problems: this package's in the order of the papers, then those of installed packages."""
    return [*SUMMARIES, *(point.name for point in _installed())]


def get(name: str, **options: Any) -> "Problem":
    """Look up a problem.

    Args:
        name: one of `names()`; or PACKAGE.MODULE:FACTORY, a function of yours that returns a `Problem`.
        options: of the problem, see its function; they are part of what its results mean and stay with it as
            `problem.options`.

    Raises:
        ProblemError: no problem of that name (the message lists those there are), an option that it does not have or a
            value that it refuses, or a function that fails or returns no `Problem`.
    """
    from .problem import Problem  # which imports torch; names alone do not need it

    make = _found(name)
    known = inspect.signature(make).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        taken = [parameter.name for parameter in known]
        for option in options:
            if option not in taken:
                raise ProblemError(f"problem {name!r} has no option {option!r}; it has {', '.join(taken) or 'none'}")
    try:
        problem = make(**options)
    except Exception as error:  # of a function that may be the user's
        raise ProblemError(f"problem {name!r} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(problem, Problem):
        raise ProblemError(f"{name} must return a latephase.problems.Problem, got {type(problem).__name__}")
    return dataclasses.replace(problem, name=name, options=dict(options))


def option_defaults(name: str) -> dict[str, Any]:
    """The options of a problem and their defaults.

    Raises:
        ProblemError: no problem of that name.
    """
    known = inspect.signature(_found(name)).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in known if p.kind is not p.VAR_KEYWORD}


def factory_of(name: str) -> str:
    """PACKAGE.MODULE:FACTORY of a problem that is not this package's; else nothing."""
    if ":" in name:
        return name
    return next((point.value for point in _installed() if point.name == name), "") if name not in SUMMARIES else ""


def _found(name: str) -> Callable[..., Any]:
    """The function that makes a problem."""
    if name in SUMMARIES:
        return getattr(importlib.import_module(f".{SUMMARIES[name].module}", __package__), name)
    if ":" in name:
        try:
            return function_named(name)
        except FactoryError as error:
            raise ProblemError(str(error)) from error
    for point in _installed():
        if point.name == name:
            try:
                return point.load()
            except Exception as error:  # of another package
                raise ProblemError(f"problem {name!r} of {point.value} cannot be loaded: {error}") from error
    close = get_close_matches(name, names(), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ProblemError(
        f"unknown problem {name!r}; known problems: {', '.join(names())}; your own is PACKAGE.MODULE:FACTORY.{hint}"
    )


def _installed() -> list[EntryPoint]:
    return sorted(
        (point for point in entry_points(group=ENTRY_POINTS) if point.name not in SUMMARIES), key=lambda p: p.name
    )
