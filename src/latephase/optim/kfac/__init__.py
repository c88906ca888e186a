"""K-FAC: natural-gradient steps with Kronecker-factored curvature, whose length an exact quadratic model sets."""

from .optimizer import KFAC
from .report import KFACStepReport

__all__ = ["KFAC", "KFACStepReport"]
