"""The learning rate of a quadratic model along one direction, and what the loss there makes of the step."""

import math
from collections.abc import Mapping
from typing import Any

from ...solve import quotient
from ..parts import DecreasingLoss
from .options import AnyDamping


def learning_rate(slope: float, curvature: float, options: Mapping[str, Any]) -> float:
    """The minimiser slope / curvature of the model along the direction, clipped, then amplified.

    Args:
        slope: g'd.
        curvature: d'Md + lambda d'd, made positive where that is asked for.
        options: of the optimizer.
    """
    lr, clip = quotient(slope, curvature), options["lr_clip"]
    if clip is not None and abs(lr) > clip:
        lr = math.copysign(clip, lr)
    return options["amplification"] * lr


def judged(rule: AnyDamping, used: float, loss: float, new_loss: float, ratio: float) -> tuple[bool, float]:
    """Whether a step is accepted, and the damping of the next one.

    Args:
        rule: how the damping is adapted.
        used: damping of the step.
        loss: f before the step.
        new_loss: f where it leads.
        ratio: its reduction ratio.
    """
    if isinstance(rule, DecreasingLoss):
        accepted = new_loss <= loss  # not so where either is not a number
        return accepted, rule.next(used, math.inf if accepted else -math.inf)
    return True, rule.next(used, ratio)
