"""A strategy of the user's own."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from ...user_code import FactoryError, function_named
from ..outline import About
from .base import Strategy
from .context import StrategyContext
from .table import StrategyTable

FACTORY = r"^[\w.]+:\w+$"


class Custom(StrategyTable):
    """A strategy of the user's own: PACKAGE.MODULE:FACTORY, called with a `StrategyContext` and the options."""

    about: ClassVar = About("your own", counts=("gradients", "values", "forms", "products"))
    kind: Literal["custom"]
    factory: str = Field(pattern=FACTORY, description="PACKAGE.MODULE:FACTORY of your own")
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def factories(self) -> list[str]:
        """Its factory."""
        return [self.factory]

    def start(self, context: StrategyContext) -> Strategy:
        """What the factory returns.

        Raises:
            FactoryError: that is no strategy.
        """
        made = function_named(self.factory)(context, **self.options)
        if not isinstance(made, Strategy):
            raise FactoryError(
                f"{self.factory} must return a latephase.study.strategies.Strategy, got {type(made).__name__}"
            )
        return made
