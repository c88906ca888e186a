"""Second-order training for PyTorch, above all of its late phase."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .objective import Objective
    from .optim import HessianFree, StepReport
    from .parameters import layerwise

__all__ = ["HessianFree", "Objective", "StepReport", "layerwise"]
__version__ = "0.1.0"

_ROOMS = {"HessianFree": "optim", "Objective": "objective", "StepReport": "optim", "layerwise": "parameters"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that reading a study's results does not import torch."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
