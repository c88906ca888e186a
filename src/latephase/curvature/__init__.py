"""Curvature products: the Gauss-Newton matrix and the Hessian of an objective, linearised once and multiplied often."""

from .linearization import Linearization, linearize
from .operator import block_diagonal, damped, dense
from .preconditioners import KFAC, EmpiricalFisher, GGNDiagonal, Nystrom, Preconditioner

__all__ = [
    "KFAC",
    "EmpiricalFisher",
    "GGNDiagonal",
    "Linearization",
    "Nystrom",
    "Preconditioner",
    "block_diagonal",
    "damped",
    "dense",
    "linearize",
]
