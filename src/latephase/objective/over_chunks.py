"""The one loop over chunks and ranks."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from .data import Chunk, nonfinite_entries
from .functional import FunctionalModel
from .program import dtypes_in_words
from .randomness import cuda_devices, draw_seed, forked, peek_seed, seed_of_chunk
from .rank_protocol import Reduce, as_one_rank
from .rank_tensors import form_of_rows
from .weights import weights_of


class OverChunks(FunctionalModel):
    """What is computed chunk by chunk, and put together over chunks and ranks.

    Attributes:
        chunks: this rank's data.
        reduce: the ranks.
        seed: of the random numbers of the step's passes; None before the first.
        idle: whether this rank has no rows: its one chunk then is a `placeholder`, and weighs nothing.
        value_calls: how often `value`, or the residuals elsewhere, were computed, so that work can be counted.
    """

    chunks: list[Chunk]
    reduce: Reduce
    seed: int | None
    idle: bool = False
    value_calls: int

    def _renewed(self) -> Self:
        """This objective, of which nothing is known yet that was read of data or model."""
        other, kind = copy.copy(self), type(self)
        for name in [name for name in vars(self) if isinstance(getattr(kind, name, None), cached_property)]:
            del vars(other)[name]
        other.program, other.seed, other.value_calls = copy.copy(self.program), None, 0
        other.program.several = False
        return other

    def reseed(self) -> None:
        """Draw the random numbers of the coming passes anew; each second-order step does so once."""
        seed = draw_seed()
        self.seed = draw_seed() if seed == self.seed else seed  # the first seed was only peeked at

    def random_numbers(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Within, torch's generators stand where chunk `index` of this step begins; afterwards, where they stood."""
        if self.seed is None:
            self.seed = peek_seed()
        return forked(seed_of_chunk(self.seed, index, self.reduce.rank), cuda_devices(self.model))

    @as_one_rank
    def sum(self, term: Callable[[Chunk, int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The one sum over chunks and ranks: each tensor that `term` returns, weighed, added up and reduced."""
        totals: list[Tensor] = []
        for index, weight in enumerate(self.weights):
            parts = self._of_chunk(term, index)
            if len(self.chunks) * self.reduce.size > 1 or weight != 1:
                # Where no target counts, a mean over them is 0/0.
                parts = [part * weight if weight else torch.zeros_like(part) for part in parts]
            totals = [total.add_(part) for total, part in zip(totals, parts, strict=True)] if totals else list(parts)
        return self.reduce.sum(totals, "the sum over chunks and ranks")

    @as_one_rank
    def rows(self, term: Callable[[Chunk, int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What has a row for each example, or several, of all chunks and ranks: put together where `sum` adds up.

        Rows come in the order of the data, chunk by chunk and rank by rank; every rank gets all of them, detached.
        They are not weighed, since a row may stand for a square, a gradient or a name: `weights` has what chunks weigh.

        Args:
            term: (chunk, its number) -> tensors [rows, ...], which may differ between chunks and ranks in how many
                rows there are, none included, and in nothing else.

        Raises:
            TypeError: a term is no tensor.
            ValueError: it has no rows, or chunks give different kinds of rows.
            RankError: ranks give different kinds of rows.
        """
        parts = [_checked(self._of_chunk(term, index), index) for index in range(len(self.chunks))]
        for index, part in enumerate(parts):
            forms, first = ([form_of_rows(tensor) for tensor in each] for each in (part, parts[0]))
            if forms != first:
                raise ValueError(f"chunk {index} gives {', '.join(forms)}, but chunk 0 {', '.join(first)}")
        together = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        together = [tensor[:0] for tensor in together] if self.idle else together
        return self.reduce.concatenate(together, "the rows of chunks and ranks")

    def _of_chunk(self, term: Callable[[Chunk, int], tuple[Tensor, ...]], index: int) -> tuple[Tensor, ...]:
        """The term of one chunk, with a word about dtypes in its error."""
        chunk = self.chunks[index]
        try:
            return term(chunk, index)
        except (RuntimeError, NotImplementedError) as error:
            if "type" in str(error) and (said := dtypes_in_words(self.model, self.program, chunk)) is not None:
                error.add_note(said)
            raise

    @property
    def own_rows(self) -> int:
        """How many examples this rank has.

        Raises:
            ValueError: they cannot be counted.
        """
        return 0 if self.idle else sum(chunk.rows for chunk in self.chunks)

    @cached_property
    def weights(self) -> list[float]:
        """Weight w_c of each of this rank's chunks in the sum: n_c / sum n over chunks and ranks, or one for a sum."""
        if len(self.chunks) * self.reduce.size == 1:
            return [1.0]
        return weights_of(self)

    @contextlib.contextmanager
    def _moving_own_buffers(self) -> Iterator[None]:
        """Within, passes move the model's buffers, but for those of a rank without rows, which no data moves."""
        undo = self._keep(self._live_buffers()) if self.idle else None
        yield
        if undo is not None:
            undo()

    def check_data(self) -> None:
        """Look for values that are not finite, once a loss was not.

        Raises:
            ValueError: the data of any rank holds such values; says where. On all ranks.
        """
        own = self._nonfinite()
        ranks = {rank: found for rank, found in enumerate(self.reduce.gather(own)) if found is not None}
        if ranks:
            texts = "; ".join(f"rank {rank} of the group: {found}" for rank, found in ranks.items())
            others = f"the data of another rank holds values that are not finite ({texts})"
            raise ValueError(f"{own or others}; clean the data")

    def _nonfinite(self) -> str | None:
        """Where this rank's data is not finite, in words; None where it is."""
        return nonfinite_entries(self.chunks)


def _checked(tensors: tuple[Tensor, ...], index: int) -> tuple[Tensor, ...]:
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"a term of chunk {index} must be a tensor with a row for each example, got {type(tensor)}")
        if tensor.dim() == 0:
            raise ValueError(f"a term of chunk {index} is a scalar, which has no rows; scalars are summed by `sum`")
    return tuple(tensor.detach() for tensor in tensors)
