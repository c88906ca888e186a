"""Learning rates from a quadratic model along a first-order direction: AdamQLR, SGDQLR, and any other base."""

from .optimizer import QuadraticLearningRate
from .options import QuadraticOptions as QuadraticOptions
from .presets import SGDQLR, AdamQLR
from .report import QuadraticStepReport, QuadraticStepStatus

__all__ = ["SGDQLR", "AdamQLR", "QuadraticLearningRate", "QuadraticStepReport", "QuadraticStepStatus"]
