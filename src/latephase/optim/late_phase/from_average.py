"""Steps that begin from an average: the base's for a while, and from the average of what they led through another's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ...objective import Objective
from .averages import TailAverage
from .contestant import Contestant, parameters_of, twin
from .states import in_mode, put, renew_statistics

PASSES = 8
"""Objectives through which the base goes. Of late-phase Hessian-free steps, three cost as much."""
SEED = 0
"""Of the random numbers of the passes that renew batch norm's statistics."""


class FromAverage(Optimizer):
    """Takes the base's steps on the parts of `PASSES` objectives, goes to their average, and on by another optimizer.

    Args:
        base: whose steps are averaged; the model is in training mode for them.
        then: what goes on, of the same parameters; in the mode in which the model is.
        rows: of the base's steps; None for all of an objective.
    """

    def __init__(self, base: Any, then: Any, rows: int | None):
        super().__init__(parameters_of(base), {})
        self.param_groups = then.param_groups
        self.base, self.then, self._rows = base, then, rows
        self._average, self._passes = TailAverage(), 0

    @property
    def report(self) -> Any:
        """Of the last step of the one that goes on, where it has one."""
        return getattr(self.then, "report", None)

    def step(self, objective: Objective, **beside: Objective) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step of the one whose turn it is, all the base's on an objective being one.

        Args:
            objective: the step's.
            **beside: what the one that goes on is given beside it.

        Returns:
            The loss before the step.
        """
        if self._passes >= PASSES:
            return self.then.step(objective, **beside)
        parts = self._parts(objective)
        with in_mode(objective.model, True):
            losses = []
            for part in parts:
                losses.append(self.base.step(part))
                self._average.add(objective.model, 0.0)
        self._passes += 1
        if self._passes == PASSES:
            put(objective.model, self._average.mean)
            renew_statistics(objective.model, parts, SEED)
            self._average = TailAverage()
        return losses[0]

    def _parts(self, objective: Objective) -> list[Objective]:
        rows = sum(chunk.rows for chunk in objective.chunks)
        count = 1 if self._rows is None else max(1, math.floor(rows / self._rows))
        return [objective] if count == 1 or self._rows is None else list(objective.split(*[self._rows] * count))

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        return {
            "base": self.base.state_dict(),
            "then": self.then.state_dict(),
            "average": self._average.state_dict(),
            "passes": self._passes,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.base.load_state_dict(state_dict["base"])
        self.then.load_state_dict(state_dict["then"])
        self._average.load_state_dict(state_dict["average"])
        self._passes, self.param_groups = state_dict["passes"], self.then.param_groups


@dataclass(frozen=True)
class FromAverageOf(Contestant):
    """A contestant whose steps begin from an average of the base's.

    Attributes:
        base_rows: of the base's steps; None for all.
    """

    base_rows: int | None = None

    def optimizer(self, base: Optimizer) -> FromAverage:
        """Of a twin of the base, and what `make` makes."""
        return FromAverage(twin(base), super().optimizer(base), self.base_rows)
