"""The registry: every kind of strategies there is, a line each. A chain is made of these (`chain`)."""

from typing import get_args

from .custom import Custom
from .first_order import FirstOrder
from .gauss_newton import GaussNewtonSteps
from .hessian_free import HessianFreeSteps
from .kfac import KFACSteps
from .lbfgs import LBFGS
from .quadratic_rate import AdamQLRSteps, SGDQLRSteps
from .self_scaled_broyden import SelfScaledBroydenSteps

Single = (
    FirstOrder
    | HessianFreeSteps
    | GaussNewtonSteps
    | AdamQLRSteps
    | SGDQLRSteps
    | KFACSteps
    | LBFGS
    | SelfScaledBroydenSteps
    | Custom
)  # fmt: skip
KINDS = get_args(Single)
