"""Levenberg-Marquardt damping: how well the quadratic model predicts, and what follows for the damping."""

import math

LARGEST = 1e30
"""Where a damping is not bounded otherwise: float32 can still hold it beside the curvature."""
SMALLEST = 1e-30
"""The same below: zero times a factor stays zero."""
ROUNDING = 4
"""A predicted change of so many units of rounding of the loss tells nothing: losses are sums of rounded terms."""


def resolution(loss: float, rounding: float) -> float:
    """The size up to which a predicted change of a loss says nothing.

    Args:
        loss: f(theta).
        rounding: unit of rounding of the dtype in which it was computed.
    """
    return ROUNDING * rounding * abs(loss)


def reduction_ratio(
    change: float, predicted: float, resolution: float | None = None, either_sign: bool = False
) -> float:
    """Actual change of the loss over the change that the quadratic model predicts, rho.

    Args:
        change: f(theta + p) - f(theta).
        predicted: q(p), the undamped model's change, which should be negative (the undamped model is that of Martens'
            program; other programs use the damped one).
        resolution: size up to which a predicted change says nothing, see `resolution`. Default none: every one counts.
        either_sign: for steps to where the model is stationary, be it a maximum (Clarke and Hernandez-Lobato 2024): a
            rise that is predicted counts like a decrease, and a loss that is not a number says nothing. Default False.

    Returns:
        change / predicted; not a number where the prediction says nothing; minus infinity where the model predicts no
        decrease or anything is not finite, so that the damping rises.
    """
    if resolution is not None and abs(predicted) <= resolution < math.inf and math.isfinite(change):
        return math.nan
    if either_sign:
        return quotient(change, predicted)
    if not (math.isfinite(change) and math.isfinite(predicted)) or predicted >= 0:
        return -math.inf
    ratio = change / predicted
    return ratio if math.isfinite(ratio) else -math.inf


def quotient(x: float, y: float) -> float:
    """Divide as IEEE 754 does, by zero as well.

    Args:
        x: the dividend.
        y: the divisor.
    """
    if y != 0:
        return x / y
    return math.nan if x == 0 or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1.0, y)


def levenberg_marquardt(
    damping: float,
    ratio: float,
    *,
    thresholds: tuple[float, float] = (1 / 4, 3 / 4),
    factors: tuple[float, float] = (2 / 3, 3 / 2),
    bounds: tuple[float, float] = (0.0, math.inf),
) -> float:
    """The damping of the next step (Martens 2010, Section 4.1).

    Args:
        damping: lambda of this step.
        ratio: reduction ratio rho; not a number says nothing.
        thresholds: below the first the damping rises, above the second it falls. Default 1/4 and 3/4, Martens' own.
        factors: on the damping where it falls, and where it rises. Default 2/3 and 3/2, Martens' own.
        bounds: least and greatest damping. Default none.

    Returns:
        The damping times a factor, within the bounds, and never above 1e30 nor, from above it, below 1e-30,
        from where it can still come back; the damping as it is where the ratio says nothing.
    """
    if math.isnan(ratio):
        return damping
    low, high = thresholds
    least = max(bounds[0], min(damping, SMALLEST))
    if ratio > high:
        damping *= factors[0]
    elif ratio < low:
        damping *= factors[1]
    return min(max(damping, least), bounds[1], LARGEST)
