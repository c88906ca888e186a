"""L-BFGS of torch."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ..outline import About
from .base import Strategy
from .context import StrategyContext
from .redrawing import OnTrainingData
from .table import checked


class LBFGS(OnTrainingData):
    """Go on with `torch.optim.LBFGS`, a fresh batch for each of its steps."""

    about: ClassVar = About("L-BFGS", second_order=True, has_rate=False)
    kind: Literal["lbfgs"]
    batch_size: int | None = Field(default=None, ge=1, description="default: all rows")
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any]) -> dict[str, Any]:
        return checked(torch.optim.LBFGS, options)

    def start(self, context: StrategyContext) -> "LBFGSStrategy":
        """The strategy."""
        return LBFGSStrategy(self, context)


class LBFGSStrategy(Strategy):
    """Steps of torch's L-BFGS, each with a batch of its own."""

    def __init__(self, config: LBFGS, context: StrategyContext):
        super().__init__(context)
        self.model.train()
        self._batch_size = config.batch_size
        self._optimizer = torch.optim.LBFGS(self.model.parameters(), **config.options)
        self._steps = 0

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self._optimizer.param_groups[0]["lr"]

    def step(self, share: float) -> None:
        """Take one step, which is several iterations on one batch."""
        self._steps += 1
        objective, rows = self.context.objective_of_step(self._batch_size, self._steps)

        def closure() -> Tensor:
            self.context.work.gradients += rows
            return objective()

        self._optimizer.step(closure)
