"""What a strategy starts from: the problem, the model at the checkpoint, data, and the seed of everything random."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ...objective import Objective
from ...problems import Problem, Splits
from ...problems.problem import row_count
from ...problems.sampling import Stream, batches, draw, generator
from ..outline import SHARE, Training
from .work import Work


@dataclass
class StrategyContext:
    """Everything that a strategy may use.

    Attributes:
        problem: the problem.
        splits: its data, on the device.
        model: at the checkpoint, on the device; the strategy trains it in place.
        training: the first-order setting that led to the checkpoint.
        checkpoint: what was saved: epoch, steps, and the optimizer's state.
        seed: of data order, augmentation and the optimizer's own randomness.
        training_share: the budget as a share of the training, as far as it is known; schedules in epochs need it.
        budget: amount and unit, "seconds", "processor_seconds" or "steps"; None where it is in gradients.
        work: what has been computed; a strategy of your own that is to run under a budget in gradients counts here.
    """

    problem: Problem
    splits: Splits
    model: nn.Module
    training: Training
    checkpoint: dict[str, Any]
    seed: int
    training_share: float = SHARE
    budget: tuple[float, str] | None = None
    work: Work = field(default_factory=Work)

    @property
    def rows(self) -> int:
        """Rows of the training split."""
        return row_count(self.splits.train)

    def objective(self, rows: Tensor | None, random: torch.Generator) -> Objective:
        """The problem's objective on augmented rows of the training split.

        Args:
            rows: indices; None for all.
            random: generator of the augmentation.
        """
        self.work.samples += self.rows if rows is None else len(rows)
        return self.problem.objective(self.model, self.problem.batch(self.splits.train, rows, random))

    def objective_of_step(self, size: int | None, step: int) -> tuple[Objective, int]:
        """The problem's objective on a step's own batch, and its rows.

        Args:
            size: rows of the batch, drawn anew from all; None for all rows in their own order.
            step: number of the step, with which and the seed the batch is given.
        """
        rows = None if size is None else draw(self.rows, [size], self.seed, step)[0]
        return self.objective(rows, generator(Stream.AUGMENTATION, self.seed, step)), size or self.rows

    def redraw(self, step: int) -> None:
        """Replace the training data by fresh data, of the dtypes and on the device of those before.

        Args:
            step: number of the step, with which and the seed the data is given.

        Raises:
            ValueError: the problem's data is fixed, or what it draws has another form.
        """
        problem, former = self.problem, self.splits.train
        if problem.redraw is None:
            raise ValueError(f"the training data of {problem.name} is fixed: it cannot be drawn anew")
        fresh = problem.redraw(generator(Stream.REDRAW, self.seed, step))
        try:
            fresh = tree_map(lambda new, old: new.to(old) if isinstance(old, Tensor) else new, fresh, former)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"redraw of {problem.name} gave data of another form than its training split") from error
        if row_count(fresh) != self.rows:
            raise ValueError(
                f"redraw of {problem.name} gave {row_count(fresh)} rows, but its training split has {self.rows}"
            )
        self.splits = dataclasses.replace(self.splits, train=fresh)

    def epochs(self, size: int | None = None) -> Iterator[tuple[Objective, int, bool]]:
        """Mini-batches without end, from the checkpoint's epoch on.

        Args:
            size: rows of a batch. Default: the training's.

        Returns:
            One after the other: the objective, its rows, and whether an epoch ends with it.
        """
        yield from epochs_of_batches(self, self.checkpoint["epoch"] + 1, size or self.training.batch_size)


def epochs_of_batches(context: StrategyContext, epoch: int, size: int | None) -> Iterator[tuple[Objective, int, bool]]:
    """Mini-batches of a size (None: all rows) without end, from the beginning of an epoch on.

    All rows are taken in their own order, which spares a copy of the data.
    """
    while True:
        random = generator(Stream.AUGMENTATION, context.seed, epoch)
        order = [None] if size in (None, context.rows) else batches(context.rows, size, context.seed, epoch)
        for index, rows in enumerate(order):
            yield context.objective(rows, random), context.rows if rows is None else len(rows), index == len(order) - 1
        epoch += 1
