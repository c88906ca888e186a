"""The registry: every kind of strategies there is, a line each. A chain is made of these (`chain`)."""

from typing import get_args

from .custom import Custom
from .first_order import FirstOrder
from .hessian_free import HessianFreeSteps
from .kfac import KFACSteps
from .lbfgs import LBFGS
from .quadratic_rate import AdamQLRSteps, SGDQLRSteps

Single = (
    FirstOrder
    | HessianFreeSteps
    | AdamQLRSteps
    | SGDQLRSteps
    | KFACSteps
    | LBFGS
    | Custom
)  # fmt: skip
KINDS = get_args(Single)
