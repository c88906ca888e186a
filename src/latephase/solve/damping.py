"""Levenberg-Marquardt damping: how well the quadratic model predicts, and what follows for the damping."""

import math


def reduction_ratio(change: float, predicted: float) -> float:
    """Actual change of the loss over the change that the quadratic model predicts, rho.

    Args:
        change: f(theta + p) - f(theta).
        predicted: q(p), the undamped model's change, which should be negative (the undamped model is that of Martens'
            program; other programs use the damped one).

    Returns:
        change / predicted; minus infinity where the model predicts no decrease or anything is not finite, so that the
        damping rises.
    """
    if not (math.isfinite(change) and math.isfinite(predicted)) or predicted >= 0:
        return -math.inf
    ratio = change / predicted
    return ratio if math.isfinite(ratio) else -math.inf


def levenberg_marquardt(damping: float, ratio: float) -> float:
    """The damping of the next step (Martens 2010, Section 4.1).

    Args:
        damping: lambda of this step.
        ratio: reduction ratio rho; not a number counts as bad.

    Returns:
        3/2 lambda where rho < 1/4, 2/3 lambda where rho > 3/4, lambda otherwise.
    """
    if ratio > 3 / 4:
        return damping * 2 / 3
    if ratio >= 1 / 4:
        return damping
    return damping * 3 / 2
