"""Sums of squared residuals of any function, without a module: `minimize_residuals`."""

from .minimize import minimize_residuals as minimize_residuals
from .result import ResidualsResult as ResidualsResult
