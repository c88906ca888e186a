"""K-FAC: natural-gradient steps with Kronecker-factored curvature, whose length an exact quadratic model sets."""

from .former import FORMER as FORMER
from .former import in_a_table as in_a_table
from .optimizer import KFAC
from .options import KroneckerFactors
from .report import KFACStepReport

__all__ = ["KFAC", "KFACStepReport", "KroneckerFactors"]
