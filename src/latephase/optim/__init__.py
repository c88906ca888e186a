"""Optimizers."""

from .kfac import KFAC, KFACStepReport
from .newton import CG, GGN, Armijo, Blocks, Direct, GaussNewton, Hessian, HessianFree
from .newton import in_a_table as in_a_table
from .newton import is_former as is_former
from .parts import Fixed, LevenbergMarquardt, StepReport, StepStatus, TargetRatio
from .quadratic_lr import SGDQLR, AdamQLR, QuadraticLearningRate, QuadraticStepReport, QuadraticStepStatus
from .quadratic_lr import QuadraticOptions as QuadraticOptions

__all__ = [
    "CG",
    "GGN",
    "KFAC",
    "SGDQLR",
    "AdamQLR",
    "Armijo",
    "Blocks",
    "Direct",
    "Fixed",
    "GaussNewton",
    "Hessian",
    "HessianFree",
    "KFACStepReport",
    "LevenbergMarquardt",
    "QuadraticLearningRate",
    "QuadraticStepReport",
    "QuadraticStepStatus",
    "StepReport",
    "StepStatus",
    "TargetRatio",
]
