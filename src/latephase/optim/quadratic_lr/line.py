"""The objective along the direction that a base optimizer proposes, and the point where a learning rate leads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...curvature import linearize
from ...objective import Objective
from ...parameters import ParameterSpace
from ..parts import Carried, per_parameter
from .base import Proposal, propose
from .options import CURVATURES

SANE_CHANGE = 10.0
"""Root mean square change of a parameter in one step from which a learning rate without a limit is worth a warning."""


@dataclass(frozen=True)
class Line:
    """Value, slope and curvature along the base optimizer's direction d.

    Attributes:
        loss: f(theta).
        gradient_norm: Euclidean norm of the gradient.
        buffers: the model's buffers as an ordinary forward pass leaves them.
        proposal: the direction; None where loss or gradient are not finite.
        slope: g'd; this and the next two are not a number where there is no direction.
        bend: d'Md.
        square: d'd.
        method: how the curvature was computed, "none" where it was not.
    """

    loss: Tensor
    gradient_norm: float
    buffers: dict[str, Tensor]
    proposal: Proposal | None = None
    slope: float = math.nan
    bend: float = math.nan
    square: float = math.nan
    method: str = "none"


def line_of(base: Optimizer, objective: Objective, space: ParameterSpace, options: Mapping[str, Any]) -> Line:
    """Linearise an objective and look along the base's direction; nothing is written.

    Args:
        base: proposes the direction.
        objective: the function.
        space: the base's parameters.
        options: of the optimizer.
    """
    at_once = _forms(space, options)[0].saw(objective)
    curvature = CURVATURES[options["curvature"]]
    linear = linearize(objective, curvature, space.parameters, at_once=at_once).unwatched()
    gradient, share = linear.gradient, objective.reduce.share
    norm = float(share(gradient.norm()))
    if not (math.isfinite(norm) and bool(linear.loss.isfinite())):
        objective.check_data()
        return Line(linear.loss, norm, linear.buffers)
    proposal = propose(base, space, gradient)
    d = proposal.direction
    numbers = [torch.dot(gradient, d), linear.quadratic_form(d), torch.dot(d, d)]
    slope, bend, square = share(torch.stack([number.double() for number in numbers])).tolist()
    return Line(linear.loss, norm, linear.buffers, proposal, slope, bend, square, linear.method)


def forms_with(objective: Objective, space: ParameterSpace, options: Mapping[str, Any]) -> list[int]:
    """The forms of data that were seen, this objective's included: those are traced at once, see `Carried.saw`."""
    carried, entry = _forms(space, options)
    carried.remember(objective)
    return entry["forms"]


def _forms(space: ParameterSpace, options: Mapping[str, Any]) -> tuple[Carried, dict[str, Any]]:
    p, entry = space.parameters[0], {"forms": options["forms"]}
    return Carried({p: entry}, [{"params": [p]}], 0.0), entry


def moved(
    line: Line, lr: float, objective: Objective, space: ParameterSpace, groups: Sequence[Mapping[str, Any]]
) -> tuple[Tensor | None, float]:
    """The new parameters [P], none where they would not be finite, and the length of the step.

    Args:
        line: its direction is overwritten.
        lr: learning rate.
        objective: gives the ranks' common numbers.
        space: the parameters.
        groups: the optimizer's, with the options.
    """
    if line.proposal is None or not math.isfinite(lr):
        return None, math.nan
    update = line.proposal.direction.mul_(lr)
    factor = per_parameter(
        [{"schedule": schedule(group), "params": group["params"]} for group in groups], "schedule", space
    )
    if isinstance(factor, Tensor) or factor != 1:
        update.mul_(factor)
    norm = float(objective.reduce.share(update.norm()))
    return (space.values().sub_(update) if math.isfinite(norm) else None), norm


def schedule(group: Mapping[str, Any]) -> float:
    """By what a scheduler has changed the `lr` of a param group."""
    return float(group["lr"]) / group["unit_lr"]


def out_of_hand(lr: float, line: Line, size: int) -> str | None:
    """What to say of a learning rate without a limit that the curvature does not hold; None where it does.

    Args:
        lr: learning rate.
        line: of the step.
        size: number of parameters.
    """
    if line.bend == 0:
        return (
            "the loss has no curvature along the direction, so that the damping alone decides on the rate: "
            "it is linear in the outputs, as the absolute error is, or the batch is fitted to the last digit. Take "
            "a smooth loss (nn.HuberLoss for the absolute error), or an optimizer with a learning rate of its own"
        )
    change = abs(lr) * math.sqrt(line.square / size)
    if change > SANE_CHANGE:
        return (
            f"the learning rate {lr:.3g} moves the parameters by {change:.3g} each, in the root mean square: the "
            "curvature along the direction has all but vanished, as that of cross-entropy does on a small batch "
            "that is fitted. Set lr_clip (0.1 is usual with Adam), raise the damping, or enlarge the batch"
        )
    return None
