"""The score of a state: its loss on held-out data, in parts, so that differences have an uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...objective import Objective
from ...student import student_quantile
from .states import in_mode


@dataclass(frozen=True)
class Score:
    """Losses of one state on the parts of the held-out data, each times its share of the rows.

    Attributes:
        parts: whose sum is the loss [parts].
    """

    parts: Tensor

    @property
    def total(self) -> float:
        """The held-out loss; infinite where it is not finite."""
        total = float(self.parts.sum())
        return total if math.isfinite(total) else math.inf


class HeldOut:
    """The loss of the model's present state on held-out data, in eval mode, without a trace in model or generators.

    Args:
        objectives: of the parts.
        shares: of the rows, whose sum is 1; for parts whose losses add up, ones. Default: one part.
    """

    def __init__(self, objectives: Sequence[Objective], shares: Sequence[float] | None = None):
        self.objectives = list(objectives)
        self.shares = torch.tensor(
            [1.0] * len(self.objectives) if shares is None else list(shares), dtype=torch.float64
        )

    @property
    def model(self) -> nn.Module:
        """Whose loss it is."""
        return self.objectives[0].model

    def __call__(self) -> Score:
        """The score of the model as it is now."""
        with in_mode(self.model, False):
            losses = [float(objective.value()) for objective in self.objectives]
        return Score(torch.tensor(losses, dtype=torch.float64) * self.shares)


def difference(one: Score, other: Score) -> tuple[float, float]:
    """The mean of one score minus another, and half the width of its 95 % interval by a paired t-test over the parts.

    The width is infinite where there is one part only. It is that of the held-out rows; that another seed of the
    training would come out differently is not in it.
    """
    differences = one.parts - other.parts
    count = len(differences)
    if count < 2:
        return float(differences.sum()), math.inf
    error = float(differences.std()) * math.sqrt(count)
    return float(differences.sum()), -student_quantile(count - 1, 0.025) * error
