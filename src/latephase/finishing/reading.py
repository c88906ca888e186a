"""What `finish` is given, read: an objective to make others of, where steps get data, what scores states."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ..objective import Objective
from ..optim import OneObjective, Source, held_out_loss
from ..problems.sampling import Stream, generator
from .source import Batches, Rows, as_batch, in_common, moved, row_count, taken

Pair = tuple[Any, Any]
"""(inputs, targets)."""
HELD_OUT_SHARE = 0.1
"""Of the training rows, what is held out where no held-out data is given."""
FEWEST_ROWS = 20
"""Of which some can be held out."""
PARTS = 10
"""Into which held-out rows are divided, so that differences of losses have an interval."""
LOOKED_AT = 200_000
"""Rows up to which training and held-out data are searched for equal rows."""


class Task(NamedTuple):
    """What there is to do.

    Attributes:
        template: an objective of the model.
        source: where steps get data.
        scores: objectives of the held-out data, in parts.
    """

    template: Objective
    source: Source
    scores: list[Objective]

    def score(self) -> float:
        """The held-out loss of the model as it is; nan or infinite where it is."""
        return held_out_loss(self.scores)

    @property
    def held_out_rows(self) -> str:
        """How many there are, in words."""
        counts = [chunk.counted for objective in self.scores for chunk in objective.chunks]
        found = [count for count in counts if isinstance(count, int)]
        return f"{sum(found):,}" if len(found) == len(counts) else "not counted"


def objective_alone(objective: Objective, held_out: Any, remarks: list[str]) -> Task:
    """The task where every step sees one objective.

    Args:
        objective: the one.
        held_out: an objective, data for `objective.on`, or None.
        remarks: what a user should know; added to.
    """
    source = OneObjective(objective)
    if held_out is None:
        remarks.append("no held-out data was given: the scores are the training loss itself")
        return Task(objective, source, [objective])
    return Task(objective, source, [held_out if isinstance(held_out, Objective) else objective.on(held_out)])


class Reading:
    """The task where training data are rows or a loader.

    Args:
        model: that is finished.
        loss: of outputs and targets.
        options: of objectives: `forward` and `weight_decay`.
        batch: rows of the base's steps, where all rows are at hand.
        seed: of what is drawn.
        remarks: what a user should know; added to.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        options: dict[str, Any],
        batch: int,
        seed: int,
        remarks: list[str],
    ):
        self._model, self._loss, self._options = model, loss, options
        self._batch, self._seed, self._remarks = batch, seed, remarks
        self._device = next(model.parameters()).device

    def of(self, data: Any, held_out: Any) -> Task:
        """The task.

        Raises:
            TypeError: an Objective as held-out data, or batches of another form.
            ValueError: a loader without held-out data, or too few rows to hold some out.
        """
        if isinstance(held_out, Objective):
            raise TypeError("held_out must be data of the same form as the training data, not an Objective")
        rows, held_out_rows = rows_of(data, "data"), None if held_out is None else rows_of(held_out, "held_out")
        if rows is not None:
            if held_out is None:
                rows, held_out_rows = self._divided(rows)
            source: Source = Rows(self._objective(moved(rows, self._device)), rows, self._batch, self._seed)
            self._notice_overlap(rows, held_out_rows)
            template = source.template
        else:
            if held_out is None:
                raise ValueError("a loader's rows cannot be divided here: give held_out=(inputs, targets), or a loader")
            source = Batches(data, self._objective, self._device)
            template = source.template
        return Task(template, source, self._scores(held_out, held_out_rows))

    def _objective(self, batch: Any) -> Objective:
        return Objective(self._model, self._loss, batch, **self._options)

    def _scores(self, held_out: Any, rows: Pair | None) -> list[Objective]:
        """The held-out loss in parts, without the L2 term."""
        if rows is not None:
            count = row_count(rows)
            parts = torch.arange(count).tensor_split(min(PARTS, max(count, 1)))
            batches = [moved(taken(rows, part), self._device) for part in parts]
        else:
            batches = [as_batch(batch, self._device) for batch in held_out]
        if not batches:
            raise ValueError("the loader of the held-out data gives no batch")
        plain = Objective(self._model, self._loss, batches[0], forward=self._options["forward"])
        return [plain, *(plain.on(batch) for batch in batches[1:])]

    def _divided(self, data: Pair) -> tuple[Pair, Pair]:
        """Training rows, and those of them that are held out from now on."""
        rows = row_count(data)
        if rows < FEWEST_ROWS:
            raise ValueError(f"{rows} rows are too few to hold some out: give held_out=(inputs, targets)")
        count = round(HELD_OUT_SHARE * rows)
        order = torch.randperm(rows, generator=generator(Stream.EVALUATION, self._seed, 0))
        self._remarks.append(
            f"no held-out data was given: {count:,} of the {rows:,} training rows are held out from now on; the model "
            "was trained on them before, so that the losses are too low"
        )
        return taken(data, order[count:]), taken(data, order[:count])

    def _notice_overlap(self, data: Pair, held_out: Pair | None) -> None:
        if held_out is None or row_count(data) + row_count(held_out) > LOOKED_AT:
            return
        if count := in_common(held_out, data):
            remark = f"{count:,} of the {row_count(held_out):,} held-out rows are training rows, bit for bit"
            self._remarks.append(remark)
            warnings.warn(f"finish: {remark}; the scores favour contestants that overfit", stacklevel=4)


def rows_of(data: Any, name: str) -> Pair | None:
    """All rows as (inputs, targets) where that is what was given; None for a loader, or a list of batches.

    Args:
        data: what was given.
        name: as what.

    Raises:
        TypeError: it is neither.
        ValueError: inputs and targets have different numbers of rows.
    """
    if isinstance(data, Mapping) or (_two(data) and not all(map(_is_batch, data))):
        inputs, targets = as_batch(data)
        counts = row_count(inputs), row_count(inputs if targets is None else targets)
        if counts[0] != counts[1]:
            raise ValueError(f"{name} has {counts[0]:,} rows of inputs but {counts[1]:,} of targets")
        return inputs, targets
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(f"{name} is a dataset, which gives rows one by one; give a DataLoader of it")
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            f'{name} must be (inputs, targets), a dict with "labels", or a loader of such batches; got a '
            f"{type(data).__name__}"
        )
    return None


def _two(data: Any) -> bool:
    return isinstance(data, (tuple, list)) and len(data) == 2


def _is_batch(given: Any) -> bool:
    return _two(given) or (isinstance(given, Mapping) and "labels" in given)
