"""Training data as the hand-over draws it: rows in memory, or the batches of a loader."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..objective import Objective
from ..optim import Wants
from ..problems.sampling import STATISTICS, StepRows


class Rows:
    """Rows in memory, drawn as `StepRows` says: what a step gets follows from its number and the seed alone.

    Args:
        template: an objective of the model, of any rows.
        data: (inputs, targets), of n rows.
        batch: rows of the base's steps; None for all.
        seed: of what is drawn.
    """

    def __init__(self, template: Objective, data: tuple[Any, Any], batch: int | None, seed: int):
        self.template, self._data = template, data
        self._device = next(template.model.parameters()).device
        size = row_count(data)
        self._drawing = StepRows(size, seed)
        self.rows: int | None = size
        self.batch = None if batch is None or batch >= size else batch
        self.deterministic = self.batch is None
        self._whole: Objective | None = None

    def draw(self, wants: Wants, step: int) -> tuple[Objective, Objective | None]:
        """The data of a step."""
        own, judging = self._drawing.of_step(wants.rows, wants.evaluation, step)
        if own is None:
            self._whole = self.template.on(moved(self._data, self._device)) if self._whole is None else self._whole
            return self._whole, None
        return self._of(own), None if judging is None else self._of(judging)

    def statistics(self) -> Sequence[Objective]:
        """Batches for batch norm's statistics of an average; the same always."""
        return [self._of(rows) for rows in self._drawing.statistics(self.batch)]

    def _of(self, rows: Tensor) -> Objective:
        return self.template.on(moved(taken(self._data, rows), self._device))


class Batches:
    """The batches of a loader, in its order; a step that wants more rows gets several, as chunks.

    What a step gets depends on what was taken before: a run that is resumed goes on with a new pass.

    Args:
        loader: gives batches (inputs, targets), one pass after another; one that cannot be begun anew runs dry.
        objective: of the model, made of a batch.
        device: where batches go.

    Attributes:
        template: the objective of the first batch.

    Raises:
        TypeError: it is none, or gives something else.
        ValueError: it gives nothing.
    """

    deterministic = False

    def __init__(self, loader: Iterable[Any], objective: Callable[[Any], Objective], device: torch.device):
        self._loader, self._device = loader, device
        self._pass: Iterator[Any] = iter(loader)
        self._once = self._pass is loader
        self._kept: list[Any] = []
        try:
            first = self._next()
        except StopIteration:
            raise ValueError("the loader of the training data gives no batch") from None
        self.template = objective(first)
        self._ahead: list[Any] = [first]
        self.batch: int | None = row_count(first)
        dataset = getattr(loader, "dataset", None)
        self.rows: int | None = len(dataset) if isinstance(dataset, Sized) else None

    def draw(self, wants: Wants, step: int) -> tuple[Objective, Objective | None]:
        """The data of a step.

        Raises:
            StopIteration: the data has run dry.
        """
        rows = self.rows if wants.rows is None else wants.rows
        if rows is None:
            raise StopIteration
        objective = self.template.on(self._taken(rows))
        return objective, self.template.on(self._taken(wants.evaluation)) if wants.evaluation else None

    def statistics(self) -> Sequence[Objective]:
        """The first batches that were taken."""
        return [self.template.on(batch) for batch in self._kept]

    def _taken(self, rows: int) -> list[Any]:
        found, count = [], 0
        while count < rows:
            batch = self._ahead.pop() if self._ahead else self._next()
            found.append(batch)
            count += row_count(batch)
        return found

    def _next(self) -> Any:
        try:
            batch = next(self._pass)
        except StopIteration:
            if self._once:
                raise
            self._pass = iter(self._loader)
            batch = next(self._pass)
        batch = as_batch(batch, self._device)
        if len(self._kept) < STATISTICS:
            self._kept.append(batch)
        return batch


def as_batch(given: Any, device: torch.device | None = None) -> tuple[Any, Any]:
    """(inputs, targets) of what a loader gives: a pair; or a dict with "labels", which are the targets, too.

    Raises:
        TypeError: neither.
    """
    if isinstance(given, (tuple, list)) and len(given) == 2:
        inputs, targets = given
    elif isinstance(given, Mapping) and "labels" in given:
        inputs, targets = dict(given), given["labels"]
    else:
        what = f"a {type(given).__name__}"
        raise TypeError(
            f'a batch must be (inputs, targets), or a dict with "labels" (which are the targets); got {what}'
        )
    return (inputs, targets) if device is None else moved((inputs, targets), device)


def moved(data: Any, device: torch.device) -> Any:
    """Data with its tensors on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, data)


def row_count(data: Any) -> int:
    """Rows of a batch: those of its first tensor.

    Raises:
        ValueError: it has none.
    """
    for leaf in tree_leaves(data):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    raise ValueError("there is no tensor with rows in the data")


def taken(data: Any, rows: Tensor) -> Any:
    """Rows of data, of each tensor with that many."""
    count = row_count(data)

    def of(leaf: Any) -> Any:
        cut = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == count
        return leaf[rows.to(leaf.device)] if cut else leaf

    return tree_map(of, data)


def in_common(one: Any, other: Any) -> int:
    """How many rows of one batch's inputs are rows of another's, bit for bit."""
    seen = set(_fingerprints(other))
    return sum(each in seen for each in _fingerprints(one))


def _fingerprints(data: Any) -> list[bytes]:
    inputs = data[0]
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    rows = row_count(leaves)
    tables = [leaf.detach().cpu().contiguous().reshape(rows, -1).view(torch.uint8).numpy() for leaf in leaves]
    return [b"".join(table[row].tobytes() for table in tables) for row in range(rows)]
