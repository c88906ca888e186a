"""What a step of a quadratic learning rate did."""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class QuadraticStepStatus(StrEnum):
    """What became of a step. The first four moved the parameters; the others left everything as it was."""

    TAKEN = "taken"
    """The parameters moved along a direction in which the model has a minimum."""
    NEGATIVE_SLOPE = "negative_slope"
    """The parameters moved, and the gradient points against the direction: the learning rate is negative (unless the
    curvature is as well), so that the step goes against what the base optimizer proposed."""
    NEGATIVE_CURVATURE = "negative_curvature"
    """The parameters moved, and the damped curvature along the direction is negative: the model has a maximum there, to
    which the learning rate leads, unless `absolute_curvature` turned its sign."""
    DIVERGED = "diverged"
    """The parameters moved, and the loss there is infinite or not a number; the rule "ratio" accepts every step."""
    REJECTED = "rejected"
    """The loss would have risen; only the rule "decreasing_loss" rejects. The damping rises."""
    NONFINITE = "nonfinite"
    """The loss, the gradient, the direction or the learning rate was infinite or not a number."""
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


@dataclass(frozen=True)
class QuadraticStepReport:
    """What one step saw and did; losses are those of the objective f with its L2 term.

    Attributes:
        loss: f before the step.
        new_loss: f after the step: `loss` where the step was not taken, None where the damping is constant, since it
            would cost one more forward pass.
        gradient_norm: Euclidean norm of the gradient g, before any clipping.
        step_norm: Euclidean norm of the change of the parameters; 0.0 where the step was not taken.
        slope: g'd, with the direction d in ascent sign, both clipped where that was asked for; not a number where the
            step ended before.
        curvature: d'Md + lambda d'd, averaged where that was asked for, with its sign; not a number as `slope`.
        damping: lambda used in this step.
        predicted_change: change of f that the quadratic model predicts, see `reduction_ratio`; not a number as `slope`.
        reduction_ratio: actual over predicted change, of the step that was tried; None where the damping is constant or
            nothing was tried.
        method: how the curvature along d was computed, see `curvature.linearize`; "none" where the step ended before.
        lr: learning rate taken, after clipping, amplification, average and schedule (the first param group's where
            they differ); 0.0 where the step was not taken.
        status: what became of the step.
        accepted: whether it was taken.
        seconds: wall-clock time of the step, in seconds.
    """

    loss: float
    new_loss: float | None
    gradient_norm: float
    step_norm: float
    slope: float
    curvature: float
    damping: float
    predicted_change: float
    reduction_ratio: float | None
    method: str
    lr: float
    status: QuadraticStepStatus
    accepted: bool
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The fields as numbers and strings, ready for JSON (which has no infinity: those stay floats)."""
        return dataclasses.asdict(self) | {"status": str(self.status)}
