"""Curvature products: the Gauss-Newton matrix and the Hessian of an objective, linearised once and multiplied often."""

from .linearization import Linearization, linearize
from .operator import block_diagonal, damped, dense

__all__ = ["Linearization", "block_diagonal", "damped", "dense", "linearize"]
