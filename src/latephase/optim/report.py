"""What a second-order step did."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..solve import CGStatus

__all__ = ["CGStatus", "StepReport"]


@dataclass(frozen=True)
class StepReport:
    """What one second-order step saw and did; losses are those of the objective f with its L2 term.

    Attributes:
        loss: f on the objective's data before the step.
        new_loss: f on the objective's data after the step; None where the evaluation objective is another, since it
            would cost one more forward pass.
        evaluation_loss: f on the evaluation objective's data before the step.
        new_evaluation_loss: the same after the step.
        gradient_norm: Euclidean norm of the gradient.
        step_norm: Euclidean norm of the change of the parameters; 0.0 where the step was rejected.
        damping: lambda used in this step.
        reduction_ratio: actual over predicted change of the evaluation loss for the chosen candidate; minus infinity
            where the model predicted no decrease or something was not finite.
        lr: step size taken, line search included (the first param group's where they differ); 0.0 where the step was
            rejected, or where a schedule has set it to that.
        cg_iterations: iterations of conjugate gradients, one entry per block.
        cg_status: why they stopped, one entry per block.
        cg_chosen: iteration of the chosen candidate.
        products: products with the curvature matrix.
        method: how they were computed: "traced", "linearize" or "double_backward" (`curvature.linearize`).
        recomputed: chunks of the data that were linearised anew at every product, since what they need did not fit the
            objective's `memory_limit`.
        accepted: whether the step was taken.
        seconds: wall-clock time of the step, in seconds.
    """

    loss: float
    new_loss: float | None
    evaluation_loss: float
    new_evaluation_loss: float
    gradient_norm: float
    step_norm: float
    damping: float
    reduction_ratio: float
    lr: float
    cg_iterations: tuple[int, ...]
    cg_status: tuple[CGStatus, ...]
    cg_chosen: int
    products: int
    method: str
    recomputed: int
    accepted: bool
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The fields as numbers, strings and lists, ready for JSON (which has no infinity: those stay floats)."""
        fields = dataclasses.asdict(self)
        return fields | {
            "cg_iterations": list(self.cg_iterations),
            "cg_status": [str(status) for status in self.cg_status],
        }
