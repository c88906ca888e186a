"""Dense quasi-Newton steps: self-scaled Broyden and BFGS with a line search."""

from .optimizer import SelfScaledBroyden
from .options import Wolfe
from .report import QuasiNewtonStepReport, WolfeStatus

__all__ = ["QuasiNewtonStepReport", "SelfScaledBroyden", "Wolfe", "WolfeStatus"]
