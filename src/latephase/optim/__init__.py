"""Optimizers."""

from .former import in_a_table as in_a_table
from .kfac import KFAC, KFACStepReport, KroneckerFactors
from .newton import CG, GGN, Armijo, Blocks, Direct, GaussNewton, Hessian, HessianFree
from .newton import DirectPlan as DirectPlan
from .parts import (
    DecreasingLoss,
    Fixed,
    GaussNewtonReport,
    LevenbergMarquardt,
    NonMonotone,
    SecondOrderReport,
    StepReport,
    StepStatus,
    TargetRatio,
)
from .quadratic_lr import SGDQLR, AdamQLR, QuadraticLearningRate, QuadraticStepReport, QuadraticStepStatus
from .quadratic_lr import over as over
from .quasi_newton import QuasiNewtonStepReport, SelfScaledBroyden, Wolfe, WolfeStatus
from .residuals import ResidualsResult, minimize_residuals

__all__ = [
    "CG",
    "GGN",
    "KFAC",
    "SGDQLR",
    "AdamQLR",
    "Armijo",
    "Blocks",
    "DecreasingLoss",
    "Direct",
    "Fixed",
    "GaussNewton",
    "GaussNewtonReport",
    "Hessian",
    "HessianFree",
    "KFACStepReport",
    "KroneckerFactors",
    "LevenbergMarquardt",
    "NonMonotone",
    "QuadraticLearningRate",
    "QuadraticStepReport",
    "QuadraticStepStatus",
    "QuasiNewtonStepReport",
    "ResidualsResult",
    "SecondOrderReport",
    "SelfScaledBroyden",
    "StepReport",
    "StepStatus",
    "TargetRatio",
    "Wolfe",
    "WolfeStatus",
    "minimize_residuals",
]
