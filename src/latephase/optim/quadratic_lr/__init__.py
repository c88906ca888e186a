"""Learning rates from a quadratic model along a first-order direction: AdamQLR, SGDQLR, and any other base."""

from .former import FORMER as FORMER
from .former import in_a_table as in_a_table
from .optimizer import QuadraticLearningRate
from .options import over as over
from .presets import SGDQLR, AdamQLR
from .report import QuadraticStepReport, QuadraticStepStatus

__all__ = ["SGDQLR", "AdamQLR", "QuadraticLearningRate", "QuadraticStepReport", "QuadraticStepStatus"]
