"""Optimizers."""

from .hessian_free import HessianFree
from .report import StepReport, StepStatus

__all__ = ["HessianFree", "StepReport", "StepStatus"]
