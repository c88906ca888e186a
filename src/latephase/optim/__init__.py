"""Optimizers."""

from .hessian_free import HessianFree
from .kfac import KFAC, KFACStepReport
from .quadratic_lr import (
    SGDQLR,
    AdamQLR,
    QuadraticLearningRate,
    QuadraticStepReport,
    QuadraticStepStatus,
)
from .report import StepReport, StepStatus

__all__ = [
    "KFAC",
    "SGDQLR",
    "AdamQLR",
    "HessianFree",
    "KFACStepReport",
    "QuadraticLearningRate",
    "QuadraticStepReport",
    "QuadraticStepStatus",
    "StepReport",
    "StepStatus",
]
