"""The update that K-FAC proposes: preconditioned direction, last update, and how far to go along both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...curvature import Linearization
from ..parts import per_parameter
from .factors import Factors, preconditioned
from .plane import plane_of


@dataclass(frozen=True)
class Trial:
    """An update, not written yet.

    Attributes:
        update: delta [P].
        step_norm: its Euclidean norm; not finite where the update is not.
        lr: coefficient of the direction, a schedule's factor included.
        momentum: coefficient of the last update, likewise.
        predicted: change of f that the model predicts; None where it was not asked for.
        products: quadratic forms that it took.
    """

    update: Tensor
    step_norm: float
    lr: float
    momentum: float
    predicted: float | None
    products: int


def propose(
    linear: Linearization,
    factors: Factors,
    previous: Tensor | None,
    groups: Sequence[Mapping[str, Any]],
    damping: float,
    predict: bool,
) -> Trial:
    """The update delta = alpha Delta + mu previous with Delta = -F^-1 g (Martens and Grosse 2015, Sections 6.4 and 7).

    Coefficients that are not given minimise the quadratic model with the exact Gauss-Newton matrix and damping, under
    those that are.

    Args:
        linear: the objective at the current parameters.
        factors: of F.
        previous: the last update [P]; none before the first.
        groups: the optimizer's, with the options.
        damping: lambda.
        predict: whether the predicted change is needed, which fixed coefficients do without.
    """
    options = groups[0]
    scale = per_parameter(groups, "lr", linear.space)
    direction = preconditioned(factors, linear.gradient.neg(), damping)
    if not options["exact_lr"]:
        direction = scale * direction
    directions, fixed = [direction], [None if options["exact_lr"] else 1.0]
    if previous is not None and options["momentum"] != 0:
        directions, fixed = [direction, previous], [*fixed, options["momentum"]]
    plane, forms = None, 0
    if None in fixed:
        plane = plane_of(linear, directions)
        forms = plane.forms
        found = plane.minimiser(fixed, damping)
    else:
        found = [1.0 if c is None else float(c) for c in fixed]
    update = found[0] * direction
    for c, d in zip(found[1:], directions[1:], strict=True):
        update.add_(d, alpha=c)
    if options["exact_lr"] and (isinstance(scale, Tensor) or scale != 1):
        update = scale * update
        plane = None if isinstance(scale, Tensor) else plane
        found = [float(options["lr"]) * c for c in found]
    step_norm = float(linear.objective.reduce.share(update.norm()))
    weights = found
    if plane is None and (predict or options["exact_lr"]) and math.isfinite(step_norm):
        plane, weights = plane_of(linear, [update]), [1.0]
        forms += plane.forms
    counted = damping if options["damping"].model == "damped" else 0.0
    return Trial(
        update=update,
        step_norm=step_norm,
        lr=found[0] * (1.0 if options["exact_lr"] else float(options["lr"])),
        momentum=found[1] if len(found) > 1 else 0.0,
        predicted=None if plane is None else plane.change(weights, counted),
        products=forms,
    )
