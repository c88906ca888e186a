"""Optimizers."""

from .kfac import KFAC, KFACStepReport
from .newton import CG, GGN, Armijo, Blocks, Direct, GaussNewton, Hessian, HessianFree
from .newton import in_a_table as in_a_table
from .newton import is_former as is_former
from .parts import Fixed, LevenbergMarquardt, StepReport, StepStatus
from .quadratic_lr import SGDQLR, AdamQLR, QuadraticLearningRate, QuadraticStepReport, QuadraticStepStatus
from .quadratic_lr import QuadraticOptions as QuadraticOptions
from .residuals import ResidualsResult, minimize_residuals

__all__ = [
    "CG",
    "GGN",
    "GaussNewton",
    "KFAC",
    "SGDQLR",
    "AdamQLR",
    "Armijo",
    "Blocks",
    "Direct",
    "Fixed",
    "Hessian",
    "HessianFree",
    "KFACStepReport",
    "LevenbergMarquardt",
    "QuadraticLearningRate",
    "QuadraticStepReport",
    "QuadraticStepStatus",
    "ResidualsResult",
    "StepReport",
    "StepStatus",
    "minimize_residuals",
]
