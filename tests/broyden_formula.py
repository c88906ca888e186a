"""Self-scaled updates of the inverse Hessian as they are printed, in dense matrices: an oracle for the tests."""

import math
from typing import Any

import numpy as np


def by_formula(inverse: Any, s: Any, y: Any, b: float, update: str, first: bool) -> tuple[Any, float, float]:
    """The new inverse Hessian [P, P], tau and theta; b is s'H^-1 s / y's."""
    rho = 1 / (y @ s)
    hy = inverse @ y
    h = rho * (y @ hy)
    if update != "broyden":
        tau = 1.0 if update == "unscaled_bfgs" else (y @ y * rho if first else min(1.0, 1 / b))
        left = np.eye(len(s)) - rho * np.outer(s, y)
        return left @ (inverse / tau) @ left.T + rho * np.outer(s, s), tau, 0.0
    a = b * h - 1
    low = min(1.0, h * (1 - math.sqrt(abs(a) / (1 + a))))
    theta = max((low - 1) / a, min(1 / low, (1 - b) / b))
    sigma = 1 + theta * a
    if first:
        tau = h / sigma
    elif theta <= 0:
        tau = min(min(1.0, 1 / b) * sigma ** (1 / (1 - len(s))), sigma)
    else:
        tau = min(1.0, 1 / b) * min(sigma ** (1 / (1 - len(s))), 1 / theta)
    v = rho * s - hy / (y @ hy)
    middle = inverse - np.outer(hy, hy) / (y @ hy) + (1 - theta) / sigma * (y @ hy) * np.outer(v, v)
    return middle / tau + rho * np.outer(s, s), tau, theta
