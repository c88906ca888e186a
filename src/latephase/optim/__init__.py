"""Optimizers."""

from .kfac import KFAC, KFACStepReport
from .newton import HessianFree
from .parts import StepReport, StepStatus
from .quadratic_lr import SGDQLR, AdamQLR, QuadraticLearningRate, QuadraticStepReport, QuadraticStepStatus
from .quadratic_lr import QuadraticOptions as QuadraticOptions

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
