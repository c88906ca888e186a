"""The largest chunk of a batch whose second-order step fits into memory."""

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .data import Chunk, cut
from .memory import peak_bytes

STEP_FACTOR = 2
"""A Hessian-free step needs up to so many times the memory of a gradient (`latephase bench` measures it)."""

PROBE = 8
"""Rows of the first measurement; each further one has twice as many."""

_measured: "weakref.WeakKeyDictionary[nn.Module, dict[Any, dict[int, int]]]" = weakref.WeakKeyDictionary()


def recut(chunks: Sequence[Chunk], rows: int) -> list[Chunk]:
    """Chunks of at most so many rows, of as equal a size as possible, so that few shapes occur."""
    parts = []
    for chunk in chunks:
        count = -(-chunk.rows // rows)
        bounds = [chunk.rows * index // count for index in range(count + 1)]
        parts += [cut(chunk, start, stop) for start, stop in itertools.pairwise(bounds)]
    return parts


def largest_microbatch(objective: Any, limit: int) -> int:
    """Rows of the largest chunk whose step needs no more than `limit` bytes beside parameters and data; at least 1.

    Memory is measured on gradients of 8, 16, 32, ... rows while the next fits for certain, and the last two are
    extrapolated; once for each model, shape of the data and kind of pass.

    Args:
        objective: with the batches whole.
        limit: bytes.
    """
    chunk = max(objective.chunks, key=lambda each: each.rows)
    form = [(tuple(leaf.shape[1:]), leaf.dtype) for leaf in tree_leaves(chunk.inputs) if isinstance(leaf, Tensor)]
    measured = _measured.setdefault(objective.model, {}).setdefault((repr(form), objective.kind_of(chunk)), {})

    def needed(rows: int) -> int:
        if rows not in measured:
            measured[rows] = STEP_FACTOR * _gradient_bytes(objective, cut(chunk, 0, rows))
        return measured[rows]

    rows = min(PROBE, chunk.rows)
    while 2 * rows < chunk.rows and needed(rows) <= limit // 2:
        rows *= 2
    before = max(rows // 2, 1)
    slope = max((needed(rows) - needed(before)) / max(rows - before, 1), 1.0)
    return int(min(max(rows + (limit - needed(rows)) / slope, 1), chunk.rows))


def _gradient_bytes(objective: Any, chunk: Chunk) -> int:
    """Peak memory of one gradient, without side effects."""
    point = {name: p.detach().requires_grad_(p.requires_grad) for name, p in objective.model.named_parameters()}
    leaves = [p for p in point.values() if p.requires_grad]

    def gradient() -> None:
        with torch.enable_grad(), objective.random_numbers(0):
            loss, _ = objective.forward_pass(chunk, point, objective.buffers())
            torch.autograd.grad(loss, leaves, allow_unused=True)

    return peak_bytes(gradient, leaves[0].device)
