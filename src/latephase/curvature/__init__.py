"""Curvature products: the Gauss-Newton matrix and the Hessian of an objective, linearised once and multiplied often."""

from .blocks.over_blocks import OverBlocks, over_blocks
from .linearization import Linearization, linearize
from .operator import block_diagonal, damped, dense
from .preconditioners import EmpiricalFisher, GGNDiagonal, Kronecker, Nystrom, Preconditioner

__all__ = [
    "EmpiricalFisher",
    "GGNDiagonal",
    "Kronecker",
    "Linearization",
    "Nystrom",
    "OverBlocks",
    "Preconditioner",
    "block_diagonal",
    "damped",
    "dense",
    "linearize",
    "over_blocks",
]
