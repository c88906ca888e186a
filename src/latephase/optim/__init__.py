"""Optimizers."""

from .former import in_a_table as in_a_table
from .fresh_optimizers import FRESH as FRESH
from .fresh_optimizers import start_fresh as start_fresh
from .kfac import KFAC, KFACStepReport, KroneckerFactors
from .late_phase import Contestant, Halving, LatePhase, LatePhaseReport, OneObjective, Source, Wants
from .late_phase import ExponentialAverage as ExponentialAverage
from .late_phase import StateAverage as StateAverage
from .late_phase import WindowAverage as WindowAverage
from .late_phase import cosine as cosine
from .late_phase import held_out_loss as held_out_loss
from .late_phase import in_mode as in_mode
from .late_phase import known as known
from .late_phase import layers_with_statistics as layers_with_statistics
from .late_phase import linear as linear
from .late_phase import names_of as names_of
from .late_phase import one_minus_sqrt as one_minus_sqrt
from .late_phase import renew_statistics as renew_statistics
from .late_phase import state_dict_with as state_dict_with
from .newton import CG, GGN, Armijo, Blocks, Direct, GaussNewton, Hessian, HessianFree
from .newton import DirectPlan as DirectPlan
from .newton import multiplications_per_second as multiplications_per_second
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
from .parts import SecondOrder as SecondOrder
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
    "Contestant",
    "DecreasingLoss",
    "Direct",
    "Fixed",
    "GaussNewton",
    "GaussNewtonReport",
    "Halving",
    "Hessian",
    "HessianFree",
    "KFACStepReport",
    "KroneckerFactors",
    "LatePhase",
    "LatePhaseReport",
    "LevenbergMarquardt",
    "NonMonotone",
    "OneObjective",
    "QuadraticLearningRate",
    "QuadraticStepReport",
    "QuadraticStepStatus",
    "QuasiNewtonStepReport",
    "ResidualsResult",
    "SecondOrderReport",
    "SelfScaledBroyden",
    "Source",
    "StepReport",
    "StepStatus",
    "TargetRatio",
    "Wants",
    "Wolfe",
    "WolfeStatus",
    "minimize_residuals",
]
