"""Learning rate, prediction and damping of a quadratic model along one direction, as numbers."""

import math
from collections.abc import Mapping
from typing import Any

from ..parts import LevenbergMarquardt


def averaged(last: float | None, value: float, decay: float) -> float:
    """The moving average after one more value; it starts at the first one."""
    return value if last is None or decay == 0 else decay * last + (1 - decay) * value


def learning_rate(slope: float, curvature: float, options: Mapping[str, Any]) -> float:
    """The minimiser slope / curvature of the model along the direction, clipped, then amplified, then averaged.

    Args:
        slope: g'd.
        curvature: d'Md + lambda d'd, averaged and made positive where that is asked for.
        options: of the optimizer.
    """
    lr, clip = _quotient(slope, curvature), options["lr_clip"]
    if clip is not None and abs(lr) > clip:
        lr = math.copysign(clip, lr)
    return averaged(options["lr_average"], options["amplification"] * lr, options["lr_ema"])


def reduction(change: float, predicted: float, resolution: float = 0.0) -> float:
    """Actual over predicted change, the latter of either sign; infinite or not a number where it is zero.

    Args:
        change: of the loss.
        predicted: by the model.
        resolution: size up to which a predicted change says nothing, so that the ratio is not a number, see
            `solve.resolution`. Default none.
    """
    if abs(predicted) <= resolution < math.inf and resolution > 0 and math.isfinite(change):
        return math.nan
    return _quotient(change, predicted)


def judged(loss: float, new_loss: float, ratio: float, options: Mapping[str, Any]) -> tuple[bool, float]:
    """Whether a step is accepted, and the damping of the next one.

    Args:
        loss: f before the step.
        new_loss: f where it leads.
        ratio: its reduction ratio.
        options: of the optimizer, with `damping_factors` given.
    """
    rule = LevenbergMarquardt(0.0, factors=options["damping_factors"], range=options["damping_range"])
    accepted = True
    if options["damping_rule"] == "decreasing_loss":
        accepted = new_loss <= loss  # not so where either is not a number
        ratio = math.inf if accepted else -math.inf
    return accepted, rule.next(options["damping"], ratio)


def _quotient(x: float, y: float) -> float:
    """X / y as IEEE 754 defines it, division by zero included."""
    if y != 0:
        return x / y
    return math.nan if x == 0 or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1.0, y)
