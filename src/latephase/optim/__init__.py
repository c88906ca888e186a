"""Optimizers."""

from .hessian_free import HessianFree
from .quadratic_lr import (
    SGDQLR,
    AdamQLR,
    QuadraticLearningRate,
    QuadraticStepReport,
    QuadraticStepStatus,
)
from .report import StepReport, StepStatus

__all__ = [
    "SGDQLR",
    "AdamQLR",
    "HessianFree",
    "QuadraticLearningRate",
    "QuadraticStepReport",
    "QuadraticStepStatus",
    "StepReport",
    "StepStatus",
]
