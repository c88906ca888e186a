"""What a step of K-FAC did."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..parts import StepStatus


@dataclass(frozen=True)
class KFACStepReport:
    """What one step saw and did; losses are those of the objective f with its L2 term.

    Attributes:
        loss: f on the objective's data before the step.
        new_loss: f there after the step: `loss` where the step was not taken; None where it was not computed, since it
            would cost one more forward pass (see `adapt_period`), or the evaluation objective is another.
        evaluation_loss: f on the evaluation objective's data before the step; None where it was not computed.
        new_evaluation_loss: the same after the step.
        gradient_norm: Euclidean norm of the gradient.
        step_norm: Euclidean norm of the change of the parameters; 0.0 where the step was not taken.
        damping: lambda used in this step.
        predicted_change: change of f that the quadratic model predicts for the step that was tried, see
            `reduction_ratio` of the optimizer; None where it was not computed: rate and momentum are fixed and the
            damping is not adapted in this step, or the step ended before.
        reduction_ratio: actual over predicted change; minus infinity where the model predicted no decrease or something
            was not finite; not a number where the predicted change is within the rounding of the loss, which leaves
            the damping as it is; None where the damping is not adapted in this step.
        lr: coefficient alpha of the direction, the factor of a schedule included (the first param group's where they
            differ); 0.0 where the step was not taken.
        momentum: coefficient mu of the last update, likewise.
        products: quadratic forms with the exact curvature matrix.
        method: how they were computed, see `curvature.linearize`; "none" where there were none.
        factors_updated: whether the factors were estimated anew.
        diagonal_layers: names of the modules with parameters that have no factors but a diagonal block; empty where the
            step ended before.
        status: what became of the step: taken, nonfinite or stationary (the update was zero).
        accepted: whether it was taken.
        seconds: wall-clock time of the step, in seconds.
    """

    loss: float
    new_loss: float | None
    evaluation_loss: float | None
    new_evaluation_loss: float | None
    gradient_norm: float
    step_norm: float
    damping: float
    predicted_change: float | None
    reduction_ratio: float | None
    lr: float
    momentum: float
    products: int
    method: str
    factors_updated: bool
    diagonal_layers: tuple[str, ...]
    status: StepStatus
    accepted: bool
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The fields as numbers, strings and lists, ready for JSON (which has no infinity: those stay floats)."""
        fields = dataclasses.asdict(self)
        return fields | {"status": str(self.status), "diagonal_layers": list(self.diagonal_layers)}


def nothing_done(loss: float, gradient_norm: float, damping: float, ratio: float | None) -> dict[str, Any]:
    """The fields, but for the seconds, of a step that met something that is not finite at its start."""
    return {
        "loss": loss,
        "new_loss": loss,
        "evaluation_loss": None,
        "new_evaluation_loss": None,
        "gradient_norm": gradient_norm,
        "step_norm": 0.0,
        "damping": damping,
        "predicted_change": None,
        "reduction_ratio": ratio,
        "lr": 0.0,
        "momentum": 0.0,
        "products": 0,
        "method": "none",
        "factors_updated": False,
        "diagonal_layers": (),
        "status": StepStatus.NONFINITE,
        "accepted": False,
    }
