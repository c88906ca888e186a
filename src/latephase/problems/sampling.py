"""Stateless sampling: which rows a step sees is a pure function of (size, seed, epoch or step).

Nothing is kept between calls and torch's default generator is neither read nor moved. A resumed run therefore
continues with the rows of an uninterrupted one, and evaluating a model cannot change its training.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

_WORD = 2**32
STATISTICS = 16
"""Batches of the training data on which batch norm's statistics of an average are taken."""


class Stream(IntEnum):
    """Independent streams of random numbers: equal seeds on two streams have nothing to do with each other."""

    EPOCH = 1
    STEP = 2
    AUGMENTATION = 3
    EVALUATION = 4
    CURVATURE = 5
    REDRAW = 6


def generator(stream: Stream, seed: int, index: int) -> torch.Generator:
    """Make the CPU generator of one (stream, seed, index).

    The three numbers are hashed by numpy's `SeedSequence`, so neighbouring seeds and epochs give unrelated
    generators, and seed 0 at epoch 1 is not seed 1 at epoch 0. Torch's CPU generator uses 32 bits of its seed: two
    given triples share a generator with probability 2^-32.

    Args:
        stream: What the numbers are for.
        seed: At least 0 and below 2^64.
        index: Epoch or step, at least 0 and below 2^64.

    Raises:
        ValueError: A seed or index outside its range.
    """
    for label, value in (("seed", seed), ("epoch or step", index)):
        if not 0 <= value < _WORD**2:
            raise ValueError(f"{label} must be an integer from 0 to 2^64 - 1, not {value}")
    words = [int(stream), seed % _WORD, seed // _WORD, index % _WORD, index // _WORD]
    mixed = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))


def permutation(size: int, seed: int, epoch: int) -> Tensor:
    """The order in which one epoch visits the rows.

    Args:
        size: Number of rows.
        seed: Seed of the run's data order.
        epoch: Number of the epoch.

    Returns:
        A permutation of 0, ..., size - 1, int64 [size].

    Raises:
        ValueError: A negative size, or a seed or epoch outside its range.
    """
    if size < 0:
        raise ValueError(f"size must not be negative, got {size}")
    return torch.randperm(size, generator=generator(Stream.EPOCH, seed, epoch))


def batches(size: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """The batches of one epoch, as indices into the training split.

    The last short batch is dropped, as in DeepOBS, so every step has the same noise and the same cost. Which
    size % batch_size rows are left out differs from epoch to epoch.

    Args:
        size: Number of rows.
        batch_size: Rows per batch.
        seed: Seed of the run's data order.
        epoch: Number of the epoch.

    Returns:
        size // batch_size disjoint index tensors, each int64 [batch_size].

    Raises:
        ValueError: A batch size below 1 or above `size`, or a seed or epoch outside its range.
    """
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch_size must be from 1 to the {size} rows there are, not {batch_size}")
    order = permutation(size, seed, epoch)
    return list(order[: size - size % batch_size].split(batch_size))


def draw(size: int, counts: Sequence[int], seed: int, step: int) -> tuple[Tensor, ...]:
    """Disjoint random sets of rows for one step, drawn anew from all rows at every step.

    A Hessian-free step takes two: the rows of its objective and those of its evaluation objective, each often
    larger than a share of an epoch.

    Args:
        size: Number of rows.
        counts: Rows of each set.
        seed: Seed of the run's data order.
        step: Number of the step.

    Returns:
        One int64 tensor [count] per entry of `counts`; no row occurs twice in them.

    Raises:
        ValueError: No counts, a count below 1, more rows asked for than there are, or a seed or step outside its
            range.
    """
    if not counts or min(counts) < 1:
        raise ValueError(f"counts must be one or more positive integers, not {list(counts)}")
    if sum(counts) > size:
        raise ValueError(
            f"{' + '.join(map(str, counts))} = {sum(counts)} disjoint rows asked for, but there are {size}"
        )
    order = torch.randperm(size, generator=generator(Stream.STEP, seed, step))
    return order[: sum(counts)].split(list(counts))


class StepRows:
    """Which rows a step gets whose contestant says how many it wants: a function of its number and the seed.

    Steps that are judged by other rows get disjoint sets, drawn anew for each; others go through epochs in batches of
    one size, the last short batch being left out.

    Args:
        size: Number of rows.
        seed: Seed of what is drawn.
    """

    def __init__(self, size: int, seed: int):
        self.size, self._seed = size, seed
        self._epoch: tuple[int, int, list[Tensor]] = (0, -1, [])

    def of_step(self, rows: int | None, evaluation: int, step: int) -> tuple[Tensor | None, Tensor | None]:
        """The rows of a step, None for all of them, and those that judge it, None for none.

        Args:
            rows: How many; None for all.
            evaluation: How many judge it.
            step: Number of the step.
        """
        if rows is None or (rows >= self.size and not evaluation):
            return None, None
        if evaluation:
            own, judging = draw(self.size, [min(rows, self.size - evaluation), evaluation], self._seed, step)
            return own, judging
        epoch, place = divmod(step, self.size // rows)
        if self._epoch[:2] != (rows, epoch):
            self._epoch = rows, epoch, batches(self.size, rows, self._seed, epoch)
        return self._epoch[2][place], None

    def statistics(self, batch: int | None) -> list[Tensor]:
        """Batches on which batch norm's statistics of an average are taken; the same always.

        Args:
            batch: Rows of each; None for all.
        """
        return batches(self.size, batch or self.size, self._seed, 0)[:STATISTICS]
