"""The loss along a direction, searched, and what the gradients at its ends say of the curvature."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...objective import Objective
from ...parameters import ParameterSpace
from ...solve import WolfeResult, WolfeStatus, resolution, wolfe
from .evaluation import Evaluation, evaluate
from .options import Wolfe

FLAT = 0.5
"""Part of the slope at the start that a trial may have left so that both together tell the line's curvature."""


@dataclass
class Line:
    """The loss from the parameters along a direction.

    Attributes:
        objective: whose loss.
        space: the parameters.
        start: what is known where they are.
        direction: p [P].
        origin: the parameters [P].
        found: what was computed, by step size.
    """

    objective: Objective
    space: ParameterSpace
    start: Evaluation
    direction: Tensor
    origin: Tensor
    found: dict[float, Evaluation] = field(default_factory=dict)

    def slope_of(self, evaluation: Evaluation) -> float:
        """The loss's derivative along the direction, on all ranks that of the first."""
        return float(self.objective.reduce.share(evaluation.gradient.dot(self.direction)))

    def phi(self, lr: float) -> tuple[float, float]:
        """Loss and slope at a step size."""
        found = evaluate(self.objective, self.space, self.at(lr))
        self.found[lr] = found
        return float(found.loss), self.slope_of(found)

    def at(self, lr: float) -> Tensor:
        """The parameters at a step size [P], as they would be stored."""
        return self.space.stored(torch.add(self.origin, self.direction, alpha=lr))

    def search(self, options: Wolfe | bool, slope: float, first: float) -> WolfeResult | None:
        """The step size; None where there is no search and the loss at 1 is not finite.

        Args:
            options: the search; False for none, which takes the step size 1.
            slope: at the start.
            first: step size to try first.
        """
        if isinstance(options, Wolfe):
            f0 = float(self.start.loss)
            rounding = resolution(f0, torch.finfo(self.start.loss.dtype).eps)
            settings = {"c1": options.c1, "c2": options.c2, "max_trials": options.max_trials}
            return wolfe(self.phi, f0, slope, lr=first, rounding=rounding, **settings)
        value, after = self.phi(1.0)
        finite = math.isfinite(value) and math.isfinite(after)
        return WolfeResult(1.0, value, WolfeStatus.DECREASE, 1) if finite else None

    def gain(self, slope: float, first: float) -> float:
        """By how much the model says that the loss would fall along the line, once no trial has lowered it.

        Where a trial is near the line's minimum, as its slope tells, the parabola with both slopes; elsewhere the slope
        at the start along the first trial, which says too much where the curvature is high.

        Args:
            slope: at the start, < 0.
            first: step size that was tried first.
        """
        slopes = {lr: self.slope_of(each) for lr, each in self.found.items()}
        flattest = min(slopes, key=lambda lr: abs(slopes[lr]) if math.isfinite(slopes[lr]) else math.inf)
        if not abs(slopes[flattest]) <= -FLAT * slope:
            return -slope * first
        return min(-slope * first, slope**2 * flattest / (2 * (slopes[flattest] - slope)))


def first_trial(slope: float, decrease: float | None, gradient_norm: float, smallest: float) -> float:
    """The step size to try first (Nocedal and Wright 2006, equation 3.60).

    At most 1, the quasi-Newton step, which is tried first near a minimum: there the loss falls by far less at each step
    than at the last one. Elsewhere the loss is expected to fall as it did; a first step along the gradient, to change
    the parameters by 1 at most.

    Args:
        slope: of the loss along the direction, < 0.
        decrease: of the loss in the last step; None for a step along the gradient, with nothing known.
        gradient_norm: of the gradient.
        smallest: decrease that tells nothing.
    """
    expected = gradient_norm / 2 if decrease is None else decrease
    if decrease is not None and decrease <= smallest:
        return 1.0
    return min(1.0, 1.01 * 2 * expected / -slope)
