"""One strategy after the other: a composition of the kinds there are, and a kind itself."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from ...problems import Problem
from ..outline import About, Table
from .base import Strategy, copied
from .context import StrategyContext
from .kinds import Single
from .table import StrategyTable

SEEDS_APART = 1_000_003
"""Between the seeds of a chain's parts: further than anyone's seeds reach."""


class Part(Table):
    """A strategy of a chain, and the share of the budget after which the next one takes over."""

    until: float = Field(gt=0, le=1, description="share of the budget")
    strategy: Annotated[Single, Field(discriminator="kind")]


class Chain(StrategyTable):
    """One strategy after the other, each starting where the one before it ended."""

    about: ClassVar = About("chain", counts=())  # beside those of its parts
    kind: Literal["chain"]
    parts: list[Part] = Field(min_length=2)

    @model_validator(mode="after")
    def _in_order(self) -> "Chain":
        ends = [part.until for part in self.parts]
        if ends != sorted(set(ends)) or ends[-1] != 1:
            raise ValueError(f"parts: until must rise and end with 1.0, got {', '.join(map(str, ends))}")
        return self

    def start(self, context: StrategyContext) -> "ChainStrategy":
        """The first of them, which hands over to the next."""
        return ChainStrategy(self, context)

    @property
    def singles(self) -> list[StrategyTable]:
        """The strategies of its parts."""
        return [part.strategy for part in self.parts]

    @property
    def factories(self) -> list[str]:
        """Those of its parts."""
        return [factory for single in self.singles for factory in single.factories]

    @property
    def begins(self) -> list[float]:
        """Where its parts take over."""
        return [0.0, *(part.until for part in self.parts[:-1])]

    def warm_up_version(self) -> Self:
        """With the parts' own."""
        return self._with_each(lambda strategy: strategy.warm_up_version())

    def fitted(self, problem: Problem, rows: int) -> Self:
        """With the parts' own."""
        return self._with_each(lambda strategy: strategy.fitted(problem, rows))

    def _with_each(self, change: Callable[[Any], Any]) -> Self:
        parts = [part.model_copy(update={"strategy": change(part.strategy)}) for part in self.parts]
        return self.model_copy(update={"parts": parts})


class ChainStrategy(Strategy):
    """One strategy after the other, by shares of the budget.

    The next one starts from what would have been evaluated of the one before (from the average, where weights were
    averaged), with a fresh optimizer and its own order of the data.
    """

    def __init__(self, config: Chain, context: StrategyContext):
        super().__init__(context)
        self._parts, self._begun, self._position = list(config.parts), 0.0, 0
        self._current = self._parts[0].strategy.begin(context)

    @property
    def lr(self) -> float:
        """Of the strategy whose turn it is."""
        return self._current.lr

    def step(self, share: float) -> dict[str, Any] | None:
        """Take one step of the strategy whose turn it is."""
        while share >= self._parts[0].until and len(self._parts) > 1:
            self._hand_over()
        return self._current.step((share - self._begun) / (self._parts[0].until - self._begun))

    def _hand_over(self) -> None:
        self.model.load_state_dict(self._current.finished(copied(self._current.held())))
        self._begun, self._position = self._parts.pop(0).until, self._position + 1
        context = dataclasses.replace(
            self.context,
            checkpoint=self.context.checkpoint | {"optimizer": None},
            seed=self.context.seed + SEEDS_APART * self._position,
        )
        self._current = self._parts[0].strategy.begin(context)

    def held(self) -> dict[str, Tensor]:
        """Of the strategy whose turn it is."""
        return self._current.held()

    def finished(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the strategy whose turn it is."""
        return self._current.finished(state)
