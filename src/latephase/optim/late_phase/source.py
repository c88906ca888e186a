"""Where the hand-over gets its data: whatever draws objectives of as many rows as a step wants."""

from collections.abc import Sequence
from typing import Protocol

from ...objective import Objective, is_exhaustion
from .contestant import Wants

Draw = tuple[Objective, Objective | None]
"""A step's objective, and the one that judges it where there is one."""


class Source(Protocol):
    """Training data that is drawn by the numbers of steps, so that what was drawn before need not be remembered.

    Attributes:
        rows: of the training data in all; None where that is not known.
        batch: rows of the base's steps; None for all.
        deterministic: whether the base's steps all see the same data.
    """

    rows: int | None
    batch: int | None
    deterministic: bool

    def draw(self, wants: Wants, step: int) -> Draw:
        """The data of a step; the same for the same number.

        Raises:
            StopIteration: the data has run dry.
        """
        ...

    def statistics(self) -> Sequence[Objective]:
        """Batches for batch norm's statistics of an average; the same always."""
        ...


def drawn(source: Source, wants: Wants, step: int) -> Draw | str:
    """The data of a step; or why there is none for it."""
    try:
        return source.draw(wants, step)
    except StopIteration:
        return "the data has run dry"
    except (RuntimeError, MemoryError) as error:
        if not is_exhaustion(error):
            raise
        return f"no memory for its data: {error}"


def first_of(objective: Objective | None, source: Source | None) -> Objective:
    """The objective that is given, or one as the base's steps have it."""
    if objective is not None:
        return objective
    assert source is not None
    return source.draw(Wants(source.batch), 0)[0]


class OneObjective:
    """The source that an objective is, which all steps see as it is."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.deterministic = True
        self.batch: int | None = None
        self.rows: int | None = sum(chunk.rows for chunk in objective.chunks) or None

    def draw(self, wants: Wants, step: int) -> Draw:
        """The objective, whatever is wanted."""
        return self.objective, None

    def statistics(self) -> Sequence[Objective]:
        """The objective."""
        return [self.objective]
