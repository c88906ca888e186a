"""Second-order training for PyTorch, above all of its late phase."""

from .objective import Objective
from .optim import HessianFree, StepReport
from .parameters import layerwise

__all__ = ["HessianFree", "Objective", "StepReport", "layerwise"]
__version__ = "0.1.0"
