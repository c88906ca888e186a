"""Training data drawn anew every so many steps: a key that kinds share, and what steps under it."""

import dataclasses
from typing import Any, Self

from pydantic import Field
from torch import Tensor

from ...problems import Problem
from .base import Strategy
from .context import StrategyContext
from .table import StrategyTable


class OnTrainingData(StrategyTable):
    """What the kinds have in common whose steps take rows of the training split, which may be drawn anew."""

    redraw: int | None = Field(
        default=None, ge=1, description="steps after which the training data is drawn anew; default: never"
    )

    def begin(self, context: StrategyContext) -> Strategy:
        """The strategy, its training data drawn anew where that is asked for."""
        return self.start(context) if self.redraw is None else Redrawing(self, self.redraw, context)

    def warm_up_version(self) -> Self:
        """With data drawn anew at every step, where it is drawn anew at all."""
        return self if self.redraw is None else self.model_copy(update={"redraw": 1})

    def _check_fit(self, size: int, held_out: int, problem: Problem, rows: int) -> None:
        super()._check_fit(size, held_out, problem, rows)
        if self.redraw is not None and problem.redraw is None:
            raise ValueError(
                f"strategy {self.name}: redraw is {self.redraw}, but the training data of {problem.name} is fixed; "
                "leave redraw out"
            )


class Redrawing(Strategy):
    """A strategy whose training data is drawn anew every so many steps, on the clock.

    What is drawn is given by the seed and the number of the step, and is the strategy's own: another one, a later part
    of a chain too, begins with the split's data again. Losses of the training split are measured on the split's data.

    Args:
        table: the strategy.
        every: so many steps.
        context: what it starts from.
    """

    def __init__(self, table: StrategyTable, every: int, context: StrategyContext):
        super().__init__(dataclasses.replace(context))
        self._every, self._taken = every, 0
        self._strategy = table.start(self.context)

    @property
    def lr(self) -> float:
        """The strategy's."""
        return self._strategy.lr

    def step(self, share: float) -> dict[str, Any] | None:
        """Take one step, on fresh data where it is time for that."""
        if self._taken and self._taken % self._every == 0:
            self.context.redraw(self._taken)
        self._taken += 1
        return self._strategy.step(share)

    def held(self) -> dict[str, Tensor]:
        """The strategy's."""
        return self._strategy.held()

    def finished(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The strategy's."""
        return self._strategy.finished(state)
