"""Versioned test problems, found by name: those of the papers, installed ones, and the user's own."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registry import ProblemError, get, names

if TYPE_CHECKING:
    from .metrics import Metric
    from .problem import Problem, Splits, TrainingSetting

__all__ = ["Metric", "Problem", "ProblemError", "Splits", "TrainingSetting", "get", "names"]

_MODULES = {"Metric": "metrics", "Problem": "problem", "Splits": "problem", "TrainingSetting": "problem"}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used, so that listing problems does not."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
