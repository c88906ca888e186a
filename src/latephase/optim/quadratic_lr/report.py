"""What a step of a quadratic learning rate did."""

import math
from dataclasses import dataclass
from enum import StrEnum

from ..parts import SecondOrderReport


class QuadraticStepStatus(StrEnum):
    """What became of a step. The first four moved the parameters; the others left everything as it was."""

    TAKEN = "taken"
    """The parameters moved along a direction in which the model has a minimum."""
    NEGATIVE_SLOPE = "negative_slope"
    """The parameters moved, and the gradient points against the direction: the learning rate is negative (unless the
    curvature is as well), so that the step goes against what the base optimizer proposed."""
    NEGATIVE_CURVATURE = "negative_curvature"
    """The parameters moved, and the damped curvature along the direction is negative: the model has a maximum there, to
    which the learning rate leads, unless "absolute_hessian" turned its sign."""
    DIVERGED = "diverged"
    """The parameters moved, and the loss there is infinite or not a number; only `DecreasingLoss` rejects."""
    REJECTED = "rejected"
    """The loss would have risen; only `DecreasingLoss` rejects. The damping rises."""
    NONFINITE = "nonfinite"
    """The loss, the gradient, the direction or the learning rate was infinite or not a number; the damping rises where
    it is adapted."""
    STATIONARY = "stationary"
    """The direction is zero in every parameter, or the step within the parameters' rounding, or a schedule has set the
    rate to zero. The base optimizer keeps what it learned of the gradient."""

    @property
    def accepted(self) -> bool:
        """Whether the parameters moved."""
        return self in _MOVED


_MOVED = (
    QuadraticStepStatus.TAKEN,
    QuadraticStepStatus.NEGATIVE_SLOPE,
    QuadraticStepStatus.NEGATIVE_CURVATURE,
    QuadraticStepStatus.DIVERGED,
)


def status_of(slope: float, curvature: float, new_loss: float | None) -> QuadraticStepStatus:
    """The status of a step that moved the parameters.

    Args:
        slope: g'd.
        curvature: d'Md + lambda d'd, with its sign.
        new_loss: f where it leads, where that is known.
    """
    if new_loss is not None and not math.isfinite(new_loss):
        return QuadraticStepStatus.DIVERGED
    if curvature < 0:
        return QuadraticStepStatus.NEGATIVE_CURVATURE
    return QuadraticStepStatus.NEGATIVE_SLOPE if slope < 0 else QuadraticStepStatus.TAKEN


@dataclass(frozen=True)
class QuadraticStepReport(SecondOrderReport):
    """What one step saw and did: beside the fields of `SecondOrderReport` these.

    The objective itself judges the step, where the damping is adapted; the ratio may be of a predicted rise. The
    learning rate is that after clipping, amplification and schedule.

    Attributes:
        slope: g'd, with the direction d in ascent sign; not a number where the step ended before.
        curvature: d'Md + lambda d'd, with its sign; not a number as `slope`.
    """

    predicted_change: float
    status: QuadraticStepStatus
    slope: float
    curvature: float
