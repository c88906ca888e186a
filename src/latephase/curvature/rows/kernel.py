"""The kernel J~J~' of the rows, parameter by parameter, without all of J~ in memory."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...objective import available
from .chunk_rows import MOST_BYTES, ChunkRows
from .terms import Terms, write_columns

Columns = list[Terms | None]
"""Of one chunk and one parameter, the terms for each column."""
Uses = list[tuple[Tensor, Tensor]]
"""Slopes [R, m] and inputs [R, n] of each use of a layer, R example by example."""
STRIPS, NARROW = 8, 64
"""Strips of a symmetric matrix, of which the upper half is computed, and rows below which a strip gains nothing."""


@torch.no_grad()
def kernel_of(chunks: Sequence[ChunkRows]) -> Tensor | None:
    """J~J~' [R, R] of the rows of several chunks; None where a backward pass cannot be followed.

    Of a layer with slopes d and inputs a, in a rows' products d a', the share is (d d') * (a a'), entry by entry. Where
    a layer is used so often that this takes more than the rows' own numbers in it, these are made, for one parameter at
    a time.

    Args:
        chunks: in order.

    Raises:
        MemoryError: there is no room for so many numbers.
    """
    counts = [chunk.count for chunk in chunks]
    found = chunks[0].square(sum(counts))
    terms: list[list[Columns]] = []
    for chunk in chunks:
        own = chunk.terms()
        if own is None:
            return None
        terms.append(own)
    starts = [0, *itertools.accumulate(counts)]
    for parameter, size in enumerate(chunks[0].sizes):
        parts = [own[parameter] for own in terms]
        for i, j in itertools.combinations_with_replacement(range(len(chunks)), 2):
            block = found[starts[i] : starts[i + 1], starts[j] : starts[j + 1]]
            _add(block, parts[i], parts[j], size)
    return found.triu_().add_(found.triu(1).T)


def _add(block: Tensor, one: Columns, other: Columns, size: int) -> None:
    """Add a parameter's share to the kernel of two chunks' rows, or to the upper half of that of one's own."""
    if all(x is None for x in one) or all(x is None for x in other):
        return
    half = one is other
    first, second = _uses(one), _uses(other)
    if first is not None and second is not None and _is_cheaper(first, second):
        for rows, columns in _strips(block, half):
            for (d, a), (e, b) in itertools.product(first, second):
                block[rows, columns] += (d[rows] @ e[columns].T).mul_(a[rows] @ b[columns].T)
        return
    most = _most(block, size)
    for start in range(0, block.shape[0], most):
        left = _rows(one, block.shape[0], size, start, most, block)
        for begin in range(start if half else 0, block.shape[1], most):
            is_own = half and begin == start
            right = left if is_own else _rows(other, block.shape[1], size, begin, most, block)
            part = block[start : start + len(left), begin : begin + len(right)]
            for rows, columns in _strips(part, is_own):
                part[rows, columns].addmm_(left[rows], right[columns].T)


def _strips(block: Tensor, half: bool) -> list[tuple[slice, slice]]:
    """A block, or strips of rows that hold its upper half."""
    count, columns = block.shape
    if not half:
        return [(slice(0, count), slice(0, columns))]
    width = max(-(-count // STRIPS), NARROW)
    return [(slice(i, min(i + width, count)), slice(i, columns)) for i in range(0, count, width)]


def _is_cheaper(first: Uses, second: Uses) -> bool:
    """Whether products of slopes and of inputs take less than those of the rows' own numbers."""
    (d, a), (e, _) = first[0], second[0]
    return d.shape[1] == e.shape[1] and len(first) * len(second) * (d.shape[1] + a.shape[1]) < d.shape[1] * a.shape[1]


def _uses(columns: Columns) -> Uses | None:
    """The uses of a layer; None where these are not all that the terms are."""
    pairs: list[Uses] = []
    for terms in columns:
        if terms is None or terms.values or not terms.products:
            return None
        own = []
        for left, right in terms.products:
            if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
                return None
            own += list(zip(left.unbind(2), right.unbind(1), strict=True))
        pairs.append(own)
    if len({len(own) for own in pairs}) != 1 or len({own[0][0].shape for own in pairs}) != 1:
        return None
    uses = zip(*pairs, strict=True)
    return [(_by_row([d for d, _ in use]), _by_row([a for _, a in use])) for use in uses]


def _by_row(columns: Sequence[Tensor]) -> Tensor:
    return columns[0] if len(columns) == 1 else torch.stack(list(columns), dim=1).flatten(0, 1)


def _most(block: Tensor, size: int) -> int:
    """How many rows of a parameter are in memory at a time, twice."""
    return max(min(MOST_BYTES, available(block.device) // 4) // (2 * size * block.itemsize), 1)


def _rows(columns: Columns, count: int, size: int, start: int, most: int, like: Tensor) -> Tensor:
    """At least the rows from a place on that there is room for, of whole examples before they are cut."""
    stop, width = min(start + most, count), len(columns)
    examples = slice(start // width, -(-stop // width))
    found = like.new_empty(examples.stop - examples.start, width, size)
    write_columns(found, columns, examples)
    before = start - examples.start * width
    return found.flatten(0, 1)[before : before + stop - start]
