"""What a quasi-Newton step did."""

from dataclasses import dataclass
from typing import Any

from ...solve import WolfeStatus
from ..parts import SecondOrderReport, StepStatus

__all__ = ["QuasiNewtonStepReport", "WolfeStatus", "nothing_done"]


@dataclass(frozen=True)
class QuasiNewtonStepReport(SecondOrderReport):
    """What one quasi-Newton step saw and did: beside the fields of `SecondOrderReport` these.

    There is no damping, which is reported as 0, and no reduction ratio. The predicted change is that of the quadratic
    model with the inverse Hessian H, (a^2 / 2 - a) g'Hg at step size a; None where param groups differ in their rates.

    Attributes:
        gradients: how often loss and gradient were computed.
        line_search: how it ended; None without one, or where the step ended before.
        updated: whether H was updated.
        restarted: whether H was dropped: it gave no descent, or the line search failed along what it gave. The next
            step, or this one where H gave no descent, begins with the gradient.
        updates: how many updates H has had since it was the identity.
        tau: the scale of the update, by which H was divided; None where there was none.
        theta: member of Broyden's class that the update was: 0 is BFGS; None where there was none.
    """

    status: StepStatus
    gradients: int
    line_search: WolfeStatus | None
    updated: bool
    restarted: bool
    updates: int
    tau: float | None
    theta: float | None


def nothing_done(loss: float, gradient_norm: float, gradients: int, updates: int) -> dict[str, Any]:
    """The fields, but for the seconds, of a step that met something that is not finite at its start."""
    return {
        "loss": loss,
        "new_loss": loss,
        "gradient_norm": gradient_norm,
        "step_norm": 0.0,
        "damping": 0.0,
        "predicted_change": None,
        "reduction_ratio": None,
        "lr": 0.0,
        "method": "none",
        "status": StepStatus.NONFINITE,
        "accepted": False,
        "gradients": gradients,
        "line_search": None,
        "updated": False,
        "restarted": False,
        "updates": updates,
        "tau": None,
        "theta": None,
    }
