"""The data of an objective as chunks: reading what the user gives, cutting and drawing rows, weighing chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map

ROWS_HINT = "dimension 0 of every input and of the targets counts the examples"


@dataclass(frozen=True)
class Chunk:
    """Part of the data: inputs (a tensor or a tree of tensors) and targets, example by example along dimension 0.

    Attributes:
        inputs: a tensor or a tree of tensors.
        targets: a tensor, a tree of tensors, or None.
        counted: the number of examples; or why they cannot be counted, which is no error as long as nobody asks.
    """

    inputs: Any
    targets: Any
    counted: int | str

    @property
    def rows(self) -> int:
        """The number of examples, asked for where a batch is cut, split, drawn from or weighed.

        Raises:
            ValueError: they cannot be counted.
        """
        if isinstance(self.counted, str):
            raise ValueError(f"{self.counted}, which only a batch that stays whole may have")
        return self.counted

    @property
    def extent(self) -> int:
        """The number of examples, or of targets where they cannot be counted: for estimates of cost only."""
        if not isinstance(self.counted, str):
            return self.counted
        return sum(leaf.numel() for leaf in tree_leaves(self.targets) if isinstance(leaf, Tensor))


def read_chunks(data: Any, microbatch_size: int | None, may_be_empty: bool = False) -> list[Chunk]:
    """One batch, or a sequence of batches, as chunks.

    Args:
        data: a pair (inputs, targets) as tuple or list, or a sequence of such pairs.
        microbatch_size: at most so many examples per chunk; None leaves the batches whole.
        may_be_empty: whether all batches may have no rows; they then are one chunk of none. Default: they may not.

    Raises:
        TypeError: the data is neither.
        ValueError: an empty batch, inputs and targets of different length, or a microbatch_size below 1.
    """
    check_size(microbatch_size)
    if _is_pair(data):
        batches = [data]
    elif isinstance(data, (tuple, list)) and data and not isinstance(data[0], (tuple, list)):
        batches = [data]  # meant as one batch; what is wrong with it is said below
    elif isinstance(data, Sequence) and not isinstance(data, str):
        batches = list(data)
        if not batches:
            advice = "; a rank without rows gives a batch of none: (inputs[:0], targets[:0])" if may_be_empty else ""
            raise ValueError(f"the data is an empty sequence of batches{advice}")
    else:
        raise TypeError(
            f"data must be a pair (inputs, targets) or a sequence of such pairs, got {type(data).__name__}; "
            "make a list of a DataLoader's batches first: Objective(model, loss, list(loader))"
        )
    chunks = [_read_batch(batch, index, len(batches)) for index, batch in enumerate(batches)]
    empty = [index for index, chunk in enumerate(chunks) if chunk.counted == 0]
    if may_be_empty and len(empty) == len(chunks):
        return chunks[:1]
    if empty:
        raise ValueError(f"{_name_of(empty[0], len(batches))} is empty: it has no rows")
    if len(chunks) > 1:
        for chunk in chunks:
            _ = chunk.rows  # several batches are weighed
    if microbatch_size is None:
        return chunks
    return [
        cut(chunk, start, min(start + microbatch_size, chunk.rows))
        for chunk in chunks
        for start in range(0, chunk.rows, microbatch_size)
    ]


def check_size(microbatch_size: Any) -> None:
    """Refuse what is no number of examples.

    Raises:
        ValueError: it is none.
    """
    if microbatch_size is not None and not (isinstance(microbatch_size, int) and microbatch_size >= 1):
        raise ValueError(f"microbatch_size must be an integer >= 1 or 'auto', got {microbatch_size!r}")


def _is_pair(data: Any) -> bool:
    """Whether this is one batch; of two tuples or lists it is taken for two batches."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    return _is_targets(data[1]) and not (isinstance(data[0], (tuple, list)) and isinstance(data[1], (tuple, list)))


def _is_targets(targets: Any) -> bool:
    return targets is None or any(isinstance(leaf, Tensor) for leaf in tree_leaves(targets))


def _read_batch(batch: Any, index: int, count: int) -> Chunk:
    where = _name_of(index, count)
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and _is_targets(batch[1])):
        what = type(batch).__name__
        if isinstance(batch, (tuple, list)):
            what = f"{what} of {', '.join(type(part).__name__ for part in batch)}"
        raise TypeError(
            f"{where} must be a pair (inputs, targets) with a tensor of targets, got a {what}; torch.as_tensor makes "
            "tensors of arrays, and several inputs are one tuple: ((x1, x2), y)"
        )
    inputs, targets = batch
    if isinstance(inputs, list):
        inputs = tuple(inputs)
    elif isinstance(inputs, Mapping):  # of any kind, such as a tokenizer's
        inputs = dict(inputs)
    lengths = [leaf.shape[0] for leaf in _batched(inputs)]
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(inputs)):
        raise TypeError(f"{where} has no tensor among its inputs; torch.as_tensor makes tensors of arrays")
    of_targets = lengths if targets is None else [leaf.shape[0] for leaf in _batched(targets)]
    if not of_targets or not lengths:
        return Chunk(inputs, targets, f"{where} has no examples to count: {ROWS_HINT}")
    rows = of_targets[0]
    if 0 in (*of_targets, *lengths):
        return Chunk(inputs, targets, 0)
    for length in of_targets:
        if length != rows:
            return Chunk(inputs, targets, f"{where} has targets of {rows} and of {length} rows; {ROWS_HINT}")
    for length in lengths:
        if length != rows:
            message = f"{where} has {length} rows of inputs but {rows} of targets; {ROWS_HINT}"
            return Chunk(inputs, targets, message)
    return Chunk(inputs, targets, rows)


def _name_of(index: int, count: int) -> str:
    return "the batch" if count == 1 else f"chunk {index}"


def placeholder(chunk: Chunk) -> Chunk:
    """Two rows of the kind that a chunk without rows has none of, for a rank that takes part with weight zero.

    They are computed with like any others, so that the rank does what all do: floating-point numbers are 0.5, which
    few functions refuse, all others 0, which is a class and a token. Two, since batch norm refuses one.
    """

    def rows(leaf: Tensor) -> Tensor:
        if leaf.shape[0]:
            return leaf
        shape = (2, *leaf.shape[1:])
        return leaf.new_full(shape, 0.5) if leaf.is_floating_point() else leaf.new_zeros(shape)

    inputs, targets = _map_batched(rows, (chunk.inputs, chunk.targets))
    return Chunk(inputs, targets, 2)


def _batched(tree: Any) -> list[Tensor]:
    """The tensors of a tree that have a batch dimension."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.dim() > 0]


def _map_batched(function: Any, tree: Any) -> Any:
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf, tree)


def cut(chunk: Chunk, start: int, stop: int) -> Chunk:
    """Rows start .. stop - 1 of a chunk, as views."""
    inputs, targets = _map_batched(lambda leaf: leaf[start:stop], (chunk.inputs, chunk.targets))
    return Chunk(inputs, targets, stop - start)


def take(chunks: Sequence[Chunk], rows: Tensor) -> list[Chunk]:
    """The given rows, counted through all chunks, chunk by chunk; a chunk none of whose rows is taken is left out."""
    taken, offset = [], 0
    for chunk in chunks:
        own = rows[(rows >= offset) & (rows < offset + chunk.rows)] - offset
        offset += chunk.rows
        if own.numel():
            pair = (chunk.inputs, chunk.targets)
            inputs, targets = _map_batched(lambda leaf, own=own: leaf[own.to(leaf.device)], pair)
            taken.append(Chunk(inputs, targets, own.numel()))
    return taken


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """The tree with its floating-point tensors in `dtype`."""

    def convert(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(convert, tree)


def nonfinite_entries(chunks: Sequence[Chunk]) -> str | None:
    """Where the data is not a number or plus infinity, in words; None where it is neither.

    Minus infinity is let pass: attention masks hold it on purpose.
    """
    for index, chunk in enumerate(chunks):
        for path, leaf in tree_flatten_with_path({"inputs": chunk.inputs, "targets": chunk.targets})[0]:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                continue
            bad = leaf.isnan() | leaf.isposinf()
            if bool(bad.any()):
                where = bad.nonzero()
                name = "".join(str(key) for key in path)[2:].replace("']", "", 1)
                row = f", the first in row {int(where[0, 0])}" if leaf.dim() else ""
                return f"{name} of chunk {index} holds {len(where)} values that are not finite{row}"
    return None
