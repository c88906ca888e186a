"""Self-scaled Broyden steps."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ...objective import Objective
from ...optim import SelfScaledBroyden
from ..outline import About
from .base import Strategy
from .context import StrategyContext
from .redrawing import OnTrainingData
from .table import checked


class SelfScaledBroydenSteps(OnTrainingData):
    """Go on with `latephase.SelfScaledBroyden` on all rows, or on a fresh batch for each of its steps."""

    about: ClassVar = About("self-scaled Broyden", second_order=True, has_rate=False)
    kind: Literal["self_scaled_broyden"]
    batch_size: int | None = Field(default=None, ge=1, description="default: all rows")
    options: dict[str, Any] = Field(default_factory=dict, description="parts are tables, such as options.line_search")

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any]) -> dict[str, Any]:
        return checked(SelfScaledBroyden, options)

    def start(self, context: StrategyContext) -> "SelfScaledBroydenStrategy":
        """The strategy."""
        return SelfScaledBroydenStrategy(self, context)


class SelfScaledBroydenStrategy(Strategy):
    """Steps of self-scaled Broyden's, which know the gradient at their beginning where the data stayed the same."""

    def __init__(self, config: SelfScaledBroydenSteps, context: StrategyContext):
        super().__init__(context)
        self.model.train()
        self._batch_size = config.batch_size
        self._optimizer = SelfScaledBroyden(self.model.parameters(), **config.options)
        self._steps = 0
        self._whole: tuple[Any, Objective] | None = None

    @property
    def lr(self) -> float:
        """The step size that the last step took, before any the first trial's."""
        report = self._optimizer.report
        return self._optimizer.param_groups[0]["lr"] if report is None else report.lr

    def step(self, share: float) -> dict[str, Any]:
        """Take one step and return its report."""
        self._steps += 1
        objective, rows = self._objective()
        self._optimizer.step(objective)
        report = self._optimizer.report
        assert report is not None
        self.context.work.gradients += report.gradients * rows
        return report.as_dict()

    def _objective(self) -> tuple[Objective, int]:
        """The step's objective and its rows: the last one again on the same data, whose gradient is known."""
        context = self.context
        data = context.splits.train
        if self._whole is not None and self._whole[0] is data:
            context.work.samples += context.rows
            return self._whole[1], context.rows
        objective, rows = context.objective_of_step(self._batch_size, self._steps)
        if self._batch_size is None and context.problem.augment is None:
            self._whole = data, objective
        return objective, rows
