"""What the evaluation objective made of the candidates."""

import math
from dataclasses import dataclass

from torch import Tensor

from ..parts import StepStatus


@dataclass(frozen=True)
class Outcome:
    """What the evaluation objective made of the candidates.

    Attributes:
        loss: f on the evaluation data at theta.
        new_loss: the same where the step leads; `loss` where it is rejected.
        status: what became of the step.
        ratio: reduction ratio of the chosen candidate; not a number where the losses cannot tell.
        predicted: change that the model predicts for it.
        iteration: iteration of the chosen candidate.
        lr: step size relative to the groups' own; 0.0 where the step is rejected.
        step_norm: Euclidean norm of the step taken.
        vector: the new parameters [P]; None where the step is rejected.
    """

    loss: float
    new_loss: float
    status: StepStatus = StepStatus.NONFINITE
    ratio: float = -math.inf
    predicted: float = math.nan
    iteration: int = 0
    lr: float = 0.0
    step_norm: float = 0.0
    vector: Tensor | None = None
