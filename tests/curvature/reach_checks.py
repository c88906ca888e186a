"""No use of a trace is older than what its code reads."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from latephase import Objective
from latephase.curvature import linearize


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(5, 4).double(), torch.randn(5, 3).double()


def never_stale(objective: Objective, change: Callable[[float], None], values=(1, 1, 1, 1, 1, 1, 3, 3)) -> str:
    """Change something at the sixth use of the trace, and compare; how the last products were computed."""
    v = None
    for value in values:
        change(float(value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            curved = linearize(objective)
            other = linearize(objective, method="double_backward")
        v = torch.ones_like(other.gradient) if v is None else v
        torch.testing.assert_close(curved.loss, other.loss)
        torch.testing.assert_close(curved.gradient, other.gradient)
        torch.testing.assert_close(curved.matvec(v), other.matvec(v))
    return curved.method
