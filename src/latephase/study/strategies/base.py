"""One way to go on from a checkpoint, a step at a time: what every strategy is."""

import math
from typing import Any

from torch import Tensor, nn

from .context import StrategyContext


class Strategy:
    """One way to go on: a step at a time, data selection included. A strategy of your own is a subclass.

    Args:
        context: what it starts from.
    """

    def __init__(self, context: StrategyContext):
        self.context = context
        self.model: nn.Module = context.model

    @property
    def lr(self) -> float:
        """The step size of the next step as far as it is known."""
        return math.nan

    def step(self, share: float) -> dict[str, Any] | None:
        """Take one step.

        Args:
            share: of the budget that is spent.

        Returns:
            What there is to log of it, as plain values by name; None for nothing.
        """
        raise NotImplementedError

    def held(self) -> dict[str, Tensor]:
        """The state dict that would be evaluated now, as tensors that later steps may change; cheap, off the clock."""
        return self.model.state_dict()

    def finished(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is done to a copy of `held` before it is evaluated, on the clock; by default nothing."""
        return state


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict that later steps leave alone."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}
