"""What a step of K-FAC did."""

from dataclasses import dataclass
from typing import Any

from ..parts import SecondOrderReport, StepStatus


@dataclass(frozen=True)
class KFACStepReport(SecondOrderReport):
    """What one step of K-FAC saw and did: beside the fields of `SecondOrderReport` these.

    The predicted change is there where rate or momentum are exact, or the damping is adapted in this step.

    Attributes:
        evaluation_loss: f on the evaluation objective's data before the step; None where it was not computed.
        new_evaluation_loss: the same after the step.
        momentum: coefficient mu of the last update, the factor of a schedule included (the first param group's where
            they differ), as in `lr`, the coefficient alpha of the direction; 0.0 where the step was not taken.
        products: quadratic forms with the exact curvature matrix.
        factors_updated: whether the factors were estimated anew.
        diagonal_layers: names of the modules with parameters that have no factors but a diagonal block; empty where the
            step ended before.
    """

    status: StepStatus
    evaluation_loss: float | None
    new_evaluation_loss: float | None
    momentum: float
    products: int
    factors_updated: bool
    diagonal_layers: tuple[str, ...]


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
