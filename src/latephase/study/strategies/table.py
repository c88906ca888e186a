"""What the table of every kind of strategies has: its keys, how it starts, and what the rest must know of it."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from pydantic import Field

from ...optim import in_a_table
from ...problems import Problem
from ..outline import NAME as NAME_ALONE
from ..outline import About, Table, hint
from .base import Strategy
from .context import StrategyContext

NOT_IN_TOML = ("params",)
NAME = f"^{NAME_ALONE}$"


class StrategyTable(Table):
    """A strategy as a study's file gives it; a kind is a subclass, which says in `start` how it steps."""

    about: ClassVar[About]
    name: str = Field(pattern=NAME, description="letters, digits, dots and hyphens, as files are called by it")
    label: str = Field(description="what it is called in tables and figures")
    kind: Any  # its name, as a Literal, in each subclass

    def start(self, context: StrategyContext) -> Strategy:
        """The strategy, starting at the context's model as it is."""
        raise NotImplementedError

    def begin(self, context: StrategyContext) -> Strategy:
        """The strategy as a study performs it: as `start` makes it, and what keys that kinds share make of that."""
        return self.start(context)

    @property
    def singles(self) -> "list[StrategyTable]":
        """The strategies that it consists of: itself."""
        return [self]

    @property
    def factories(self) -> list[str]:
        """PACKAGE.MODULE:FACTORY of the user's own code that it calls."""
        return []

    @property
    def begins(self) -> list[float]:
        """Shares of the budget from which on it steps in another way; the first is 0."""
        return [0.0]

    def warm_up_version(self) -> Self:
        """The strategy with cheaper steps, which call all that its own call."""
        return self

    def fitted(self, problem: Problem, rows: int) -> Self:
        """The strategy with what depends on the training split filled in.

        Args:
            problem: the problem.
            rows: of its training split.

        Raises:
            ValueError: a batch is larger than the split, or the problem has not what the strategy asks of it.
        """
        self._check_fit(getattr(self, "batch_size", None) or 0, 0, problem, rows)
        return self

    def _check_fit(self, size: int, held_out: int, problem: Problem, rows: int) -> None:
        if size + held_out > rows:
            beside = f" and the disjoint evaluation batch of {held_out}" if held_out else ""
            exceed = "exceed" if held_out else "exceeds"
            raise ValueError(
                f"strategy {self.name}: batch_size {size}{beside} {exceed} the {rows} training rows of {problem.name}"
            )


def start_strategy(table: StrategyTable, context: StrategyContext) -> Strategy:
    """A strategy at the checkpoint, whatever became of the model before.

    The model gets the checkpoint's state, is in training mode and has no gradients; torch's generators are seeded.
    """
    context.model.load_state_dict(context.checkpoint["model"])
    context.model.train().zero_grad(set_to_none=True)
    torch.manual_seed(context.seed)
    return table.begin(context)


def made_by(optimizer: type, preset: str) -> Callable[..., Any]:
    """What makes an optimizer: the class, or a named setting of it."""
    return optimizer if preset == "default" else getattr(optimizer, preset)


def checked(optimizer: type, options: dict[str, Any], make: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Options of an optimizer, names and values tried out.

    Args:
        optimizer: the class.
        options: beside a preset's.
        make: makes it with the preset. Default: the class.

    Raises:
        ValueError: it does not take them.
    """
    parameters = inspect.signature(optimizer).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in NOT_IN_TOML]
    for name, value in options.items():
        if (now := in_a_table(optimizer, name, value)) is not None:
            raise ValueError(f"options.{name} is {now}")
        if name not in known:
            raise ValueError(f"{name!r} is no option of {optimizer.__name__}{hint(name, known)}")
    try:
        (make or optimizer)([torch.zeros(1, requires_grad=True)], **options)
    except ValueError:
        raise
    except Exception as error:  # of torch's optimizers, for values of the wrong kind
        raise ValueError(f"options: {optimizer.__name__} does not take them: {error}") from error
    return options
