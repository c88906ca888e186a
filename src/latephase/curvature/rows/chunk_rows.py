"""The rows of one chunk: columns of the root of the loss's Hessian in the outputs, pulled back to the parameters."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...objective import available
from ...parameters import ParameterSpace
from ..eager import ForwardPass, Retained
from ..loss import Product
from .comparison import Comparison, is_due
from .followed import FollowedRows
from .loss_root import flattened, root_of_pass
from .pulling import Tensors, pull_examples, pull_whole
from .terms import Terms

COPIES = 4
"""Copies of a row that are alive at once: as gradients, in one tensor, and two to spare."""
MOST_BYTES = 2**28
"""Memory of a piece from which larger ones gain no more speed."""

Write = Callable[[Tensor, range, range], None]
"""Writes the rows of some examples, each in some columns, to [examples, columns, P]."""
SMALL = 2**27
"""Memory of all rows, copies included, below which they are one piece."""


class ChunkRows:
    """J~ [R, P] of one chunk, with J~'J~ its Gauss-Newton matrix times its weight.

    With H_L = S S' the loss's Hessian in the outputs, J~ = sqrt(weight) S'J has a row for each number of the outputs:
    example by example, within an example output by output. Where the outputs are no rows of examples, or the pass draws
    random numbers, the chunk is one example.

    Args:
        forward: the pass over the chunk, with its graph.
        weight: of the chunk in the objective.

    Attributes:
        count: R.

    Raises:
        ValueError: no root of the loss's Hessian is known, or batch norm makes one function of all examples.
    """

    def __init__(self, forward: ForwardPass, weight: float):
        _refuse_batch_norm(forward.objective.model)
        self._forward, self._weight, self._space = forward, weight, forward.space
        self.count = sum(output.numel() for output in forward.outputs)
        self._loss_root = None
        if self.count:
            task = forward.objective.program, forward.loss, forward.outputs, forward.tree, forward.chunk.targets
            self._loss_root = root_of_pass(*task)
        self._root = None if self._loss_root is None else self._loss_root.product
        counted = forward.chunk.counted
        self._has_examples = bool(self.count) and all(x.dim() > 0 and x.shape[0] == counted for x in forward.outputs)
        self._apart = self._has_examples and not forward.random

    def whole(self) -> Tensor:
        """All rows, [R, P]; errors as of `together`."""
        return together([self])

    def write(self, out: Tensor) -> None:
        """Write all rows into a tensor [R, P].

        Raises:
            ValueError: the examples do not stand apart.
        """
        for _ in self._written(None, out):
            pass

    def pieces(self, most: int | None = None) -> Iterator[Tensor]:
        """The rows in order, [r, P] at a time.

        Args:
            most: rows in a piece. Default: as many as fit into a quarter of the free memory, the objective's
                `memory_limit` and 256 MiB; at least one.

        Raises:
            ValueError: the examples do not stand apart; said after the last piece.
        """
        return self._written(most, None)

    def empty(self, rows: int) -> Tensor:
        """A tensor for so many rows.

        Raises:
            MemoryError: there is no room for so many numbers.
        """
        _refuse_excess(rows, self._space)
        return torch.empty(rows, self._space.size, dtype=self._space.dtype, device=self._space.device)

    def square(self, rows: int) -> Tensor:
        """Zeros [rows, rows].

        Raises:
            MemoryError: there is no room for so many numbers.
        """
        _refuse_excess(rows, self._space, rows)
        return torch.zeros(rows, rows, dtype=self._space.dtype, device=self._space.device)

    def terms(self) -> list[list[Terms | None]] | None:
        """Of each parameter the terms of all rows, for each column; None where the backward pass cannot be followed."""
        if self._root is None or not self._weight:
            return [[None] for _ in self._space.sizes]
        if not self._has_examples:
            return None
        followed = FollowedRows(self._forward, self._root, math.sqrt(self._weight))
        return followed.all() if followed.works() else None

    @property
    def sizes(self) -> list[int]:
        """Numbers of each parameter."""
        return self._space.sizes

    def _written(self, most: int | None, into: Tensor | None) -> Iterator[Tensor]:
        """The pieces, each in memory of its own or in its place in a tensor of all rows."""
        if self._root is None:
            return
        most, write, examples, check = self._way(self._root, most, into is not None)
        columns = self.count // examples
        start = 0
        for some in _ranges(examples, max(most // columns, 1)):
            for those in _ranges(columns, min(most, columns)):
                rows = len(some) * len(those)
                piece = self.empty(rows) if into is None else into[start : start + rows]
                start += rows
                if self._weight:
                    write(piece.view(len(some), len(those), -1), some, those)
                else:
                    piece.zero_()
                if check is not None:
                    check.add(piece, some, those)
                yield piece
        if check is not None:
            check.judge()

    def residual(self) -> Tensor | None:
        """The vector r [R] with J~'r the chunk's gradient times its weight; None where the loss does not tell it."""
        forward = self._forward
        if self._loss_root is None:
            return torch.zeros(0, dtype=self._space.dtype, device=self._space.device)
        slopes = torch.autograd.grad(forward.loss, forward.outputs, retain_graph=True, materialize_grads=True)
        found = self._loss_root.residual(slopes)
        if found is None:
            return None
        return flattened(found, self._has_examples).to(self._space.dtype) * math.sqrt(self._weight)

    def scale(self) -> Tensor:
        """S 1 [R], without the weight: the diagonal of a root that has nothing beside it."""
        if self._root is None:
            return torch.zeros(0, dtype=self._space.dtype, device=self._space.device)
        return flattened(self._root([torch.ones_like(x) for x in self._forward.outputs]), self._has_examples)

    def _way(self, root: Product, most: int | None, is_there: bool) -> tuple[int, Write, int, Comparison | None]:
        """How many rows are written at a time, how, of how many examples, and what they are compared with.

        Where the memory of all rows is there already, following takes little more than a backward pass has anyway.
        """
        scale = math.sqrt(self._weight)
        followed = FollowedRows(self._forward, root, scale) if self._has_examples else None
        alone = self._forward.outputs[0].shape[0] if self._apart else 1
        limit = self._forward.objective.memory_limit
        if followed is not None and followed.works():
            is_one = most is None and limit is None and (is_there or self._is_small())
            most = self.count if is_one else most or self._fitting(alone)
            is_compared, dtypes = is_due(self._forward), followed.dtypes
            check = Comparison(self._forward, root, scale, dtypes) if is_compared else None
            return most, followed.write, followed.examples, check
        most = most or self._fitting(alone)
        pull = pull_examples(self._forward) if self._apart else pull_whole(self._forward)

        def write(out: Tensor, examples: range, columns: range) -> None:
            outputs = self._forward.outputs
            units = _units(outputs, columns) if self._apart else _units_of_whole(outputs, columns, self._has_examples)
            cotangents = [
                torch.stack(each).mul_(scale)
                for each in zip(*(root(list(u)) for u in zip(*units, strict=True)), strict=True)
            ]
            start = 0
            for gradient in pull(cotangents, examples):
                own = gradient.reshape(*out.shape[:2], -1)
                out[..., start : start + own.shape[2]] = own
                start += own.shape[2]

        dtypes = {p.dtype for p in self._space.parameters}
        check = Comparison(self._forward, root, scale, dtypes) if self._apart else None
        return most, write, alone, check

    def _is_small(self) -> bool:
        """Whether all rows take so little memory that looking for what there is would take longer."""
        return COPIES * self.count * self._space.size * self._space.dtype.itemsize <= SMALL

    def _fitting(self, examples: int) -> int:
        """Rows in a piece, each with its share of what the pass keeps: a backward pass has as much again for each."""
        objective, space = self._forward.objective, self._space
        limit = min(available(space.device) // 4, MOST_BYTES)
        if objective.memory_limit is not None:
            limit = min(limit, objective.memory_limit)
        kept = sum(Retained(self._forward, False, "double_backward").storages().values()) // examples
        return max(limit // (COPIES * space.size * space.dtype.itemsize + kept), 1)


def together(chunks: Sequence[ChunkRows]) -> Tensor:
    """The rows of several chunks, [R, P].

    Raises:
        MemoryError: there is no room for so many numbers.
        ValueError: the examples of a chunk do not stand apart.
    """
    counts = [chunk.count for chunk in chunks]
    found, start = chunks[0].empty(sum(counts)), 0
    for chunk, count in zip(chunks, counts, strict=True):
        chunk.write(found[start : start + count])
        start += count
    return found


def _refuse_excess(rows: int, space: ParameterSpace, columns: int | None = None) -> None:
    """Refuse rows, of parameters if not said otherwise, for which there is no room."""
    of = f"{space.size:,} parameters" if columns is None else f"{columns:,} numbers"
    size = rows * (space.size if columns is None else columns) * space.dtype.itemsize
    if size > SMALL // COPIES and size > (free := available(space.device)):
        raise MemoryError(
            f"{rows:,} rows of {of} are {size / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB are "
            "free; take the rows in pieces (row_pieces), or fewer examples (objective.subsample)"
        )


def _refuse_batch_norm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"batch norm {name!r} normalises by the batch, so that an example's outputs depend on the others and "
                "have no rows of their own; put the model into eval mode (running statistics), or use products (matvec)"
            )


def _units(outputs: Sequence[Tensor], columns: range) -> Tensors:
    """Of every example the same unit vectors, in the shapes of the outputs: [columns, examples, ...] each."""
    widths = [output[:1].numel() for output in outputs]
    flat = _unit_vectors(columns, sum(widths), outputs[0])
    parts = zip(flat.split(widths, dim=1), outputs, strict=True)
    return [part.view(len(columns), 1, *output.shape[1:]).expand(len(columns), *output.shape) for part, output in parts]


def _units_of_whole(outputs: Sequence[Tensor], columns: range, has_examples: bool) -> Tensors:
    """Unit vectors of all outputs together: [columns, ...] in the shape of each."""
    sizes = [output.numel() for output in outputs]
    places = [
        torch.arange(size) + before for size, before in zip(sizes, itertools.accumulate([0, *sizes]), strict=False)
    ]
    if has_examples:
        order = torch.cat([place.view(len(output), -1) for place, output in zip(places, outputs, strict=True)], dim=1)
    else:
        order = torch.cat(places)
    chosen = order.reshape(-1)[columns.start : columns.stop].to(outputs[0].device)
    flat = torch.zeros(len(columns), sum(sizes), dtype=outputs[0].dtype, device=outputs[0].device)
    flat[torch.arange(len(columns)), chosen] = 1
    return [part.view(-1, *x.shape).to(x.dtype) for part, x in zip(flat.split(sizes, dim=1), outputs, strict=True)]


def _unit_vectors(columns: range, size: int, like: Tensor) -> Tensor:
    flat = torch.zeros(len(columns), size, dtype=like.dtype, device=like.device)
    flat[torch.arange(len(columns)), torch.arange(columns.start, columns.stop)] = 1
    return flat


def _ranges(size: int, step: int) -> list[range]:
    return [range(start, min(start + step, size)) for start in range(0, size, step)]
