"""The rows of examples by backward passes of many of them at once, a pass for each number of an output."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...objective import cut, is_exhaustion
from ..chunk_task import ChunkTask
from ..eager import ForwardPass
from ..loss import Product
from .following import follow
from .places import CannotFollow
from .pulling import outputs_alone
from .terms import Terms, write_columns

Tensors = Sequence[Tensor]

AT_ONCE = 2**23
"""Numbers of terms that are kept at a time: of columns that are written together, of pieces that follow."""


class FollowedRows:
    """Rows by backward passes that are followed example by example (`follow`).

    A part of the examples has a forward pass of its own, as a chunk, where that gives the same outputs; otherwise the
    whole chunk's backward pass is theirs.

    Args:
        forward: the pass over the whole chunk.
        root: of the loss's Hessian in the outputs.
        scale: of the rows.

    Attributes:
        examples: how many there are.
        dtypes: of the parameters and, once it is known that this works, of the backward pass.
    """

    def __init__(self, forward: ForwardPass, root: Product, scale: float):
        self._forward, self._root, self._scale = forward, root, scale
        self.examples = len(forward.outputs[0])
        self._widths = [output[:1].numel() for output in forward.outputs]
        limit = forward.objective.memory_limit
        self._numbers = AT_ONCE if limit is None else min(AT_ONCE, limit // forward.space.dtype.itemsize)
        self._may_cut = not forward.random
        self._part: tuple[range, ForwardPass] = range(self.examples), forward
        self.dtypes = {p.dtype for p in forward.space.parameters}
        self._known: dict[int, list[Terms | None]] = {}

    def works(self) -> bool:
        """Whether the backward pass can be followed."""
        try:
            terms = self._terms(*self._part, 0)
        except Exception as error:  # whatever an unknown layer may raise: other ways tell whether the model is wrong
            if is_exhaustion(error):
                raise
            return False
        self.dtypes |= {x.dtype for x in _tensors(terms)}
        self._may_cut &= _numbers(terms) * sum(self._widths) > self._numbers  # otherwise all is kept
        return True

    def all(self) -> list[list[Terms | None]]:
        """Of each parameter the terms of all examples, for each column."""
        whole = range(self.examples), self._forward
        columns = [self._terms(*whole, column) for column in range(sum(self._widths))]
        return [list(own) for own in zip(*columns, strict=True)]

    @torch.no_grad()
    def write(self, out: Tensor, examples: range, columns: range) -> None:
        """Write the rows of some examples, each in some columns, to [examples, columns, P].

        Raises:
            CannotFollow: an operation of the backward pass may mix examples, or is not known.
        """
        try:
            self._write(out, examples, columns)
        except CannotFollow:
            if not self._may_cut:
                raise
            self._may_cut = False  # a part of the chunk goes another way than the whole
            self._write(out, examples, columns)

    def _write(self, out: Tensor, examples: range, columns: range) -> None:
        within, forward = self._pass(examples)
        some = slice(examples.start - within.start, examples.stop - within.start)
        done = 0
        while done < len(columns):
            terms = [self._terms(within, forward, columns[done])]
            more = columns[done + 1 : done + max(self._numbers // max(_numbers(terms[0]), 1), 1)]
            terms += [self._terms(within, forward, column) for column in more]
            part, start = out[:, done : done + len(terms)], 0
            for size, *own in zip(forward.space.sizes, *terms, strict=True):
                write_columns(part[:, :, start : start + size], own, some)
                start += size
            done += len(terms)

    def _terms(self, within: range, forward: ForwardPass, column: int) -> list[Terms | None]:
        if column in self._known:
            return self._known[column]
        cotangents = [u[within.start : within.stop] for u in self._root(self._units(column))]
        used = [i for i, u in enumerate(cotangents) if len(cotangents) == 1 or bool(u.any())]
        terms: list[Terms | None] = [None] * len(forward.leaves)
        if len(within) == 1:  # whose rows are gradients
            slopes = [slope.to_dense() if slope.is_sparse else slope for slope in forward.pull(cotangents)]
            terms = [Terms(values=[slope.unsqueeze(0)]) for slope in slopes]
        elif used:
            terms = follow([forward.outputs[i] for i in used], forward.leaves, [cotangents[i] for i in used])
        if (len(self._known) + 1) * _numbers(terms) <= self._numbers:
            self._known[column] = terms
        return terms

    def _units(self, column: int) -> list[Tensor]:
        """Of every example the same unit vector, times the scale, in the shapes of the outputs."""
        found, start = [], 0
        for output, width in zip(self._forward.outputs, self._widths, strict=True):
            unit = output.new_zeros(width)
            if start <= column < start + width:
                unit[column - start] = self._scale
            found.append(unit.view(1, *output.shape[1:]).expand(output.shape))
            start += width
        return found

    def _pass(self, examples: range) -> tuple[range, ForwardPass]:
        """A pass with a graph over at least these examples, and which it is over."""
        whole = range(self.examples), self._forward
        wanted = examples if self._may_cut else whole[0]
        if self._part[0] != wanted:
            self._known = {}
            part = None if wanted == whole[0] else self._pass_over(wanted)
            self._may_cut &= part is not None or wanted == whole[0]
            self._part = whole if part is None else (wanted, part)
        return self._part

    def _pass_over(self, examples: range) -> ForwardPass | None:
        """A part as a chunk by itself; None where it does not have the outputs that it has in the whole."""
        all = outputs_alone(self._forward)
        chunk = cut(all.chunk, examples.start, examples.stop)
        try:
            part = ForwardPass(ChunkTask(all.objective, chunk, all.index, all.space, all.buffers_before))
        except Exception as error:  # a model of chunks of one size
            if is_exhaustion(error):
                raise
            return None
        return part if self._is_same(examples, part) else None

    def _is_same(self, examples: range, part: ForwardPass) -> bool:
        """Whether a part by itself has the outputs that it has in the whole chunk."""
        if len(part.outputs) != len(self._forward.outputs):
            return False
        for own, whole in zip(part.outputs, self._forward.outputs, strict=True):
            expected = whole.detach()[examples.start : examples.stop]
            tolerance = 3 * torch.finfo(whole.dtype).eps ** 0.5 * float(expected.abs().max())
            if own.shape != expected.shape or bool(((own.detach() - expected).abs() > tolerance).any()):
                return False
        return True


def _numbers(terms: Sequence[Terms | None]) -> int:
    return sum(x.numel() for x in _tensors(terms))


def _tensors(terms: Sequence[Terms | None]) -> list[Tensor]:
    return [x for own in terms if own is not None for x in own.own()]
