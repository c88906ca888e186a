"""Optimizers."""

from .hessian_free import HessianFree
from .report import StepReport

__all__ = ["HessianFree", "StepReport"]
