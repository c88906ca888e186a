"""The one loop over chunks and ranks."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from .data import Chunk, nonfinite_entries
from .functional import FunctionalModel
from .program import dtypes_in_words
from .ranks import Reduce, as_one_rank
from .weights import weights_of


class OverChunks(FunctionalModel):
    """What is computed chunk by chunk, and put together over chunks and ranks.

    Attributes:
        chunks: this rank's data.
        reduce: the ranks.
    """

    chunks: list[Chunk]
    reduce: Reduce

    @as_one_rank
    def sum(self, term: Callable[[Chunk, int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The one sum over chunks and ranks: each tensor that `term` returns, weighed, added up and reduced."""
        totals: list[Tensor] = []
        for index, (chunk, weight) in enumerate(zip(self.chunks, self.weights, strict=True)):
            try:
                parts = term(chunk, index)
            except (RuntimeError, NotImplementedError) as error:
                if "type" in str(error) and (said := dtypes_in_words(self.model, self.program, chunk)) is not None:
                    error.add_note(said)
                raise
            if len(self.chunks) * self.reduce.size > 1:  # where no target counts, a mean over them is 0/0
                parts = [part * weight if weight else torch.zeros_like(part) for part in parts]
            totals = [total.add_(part) for total, part in zip(totals, parts, strict=True)] if totals else list(parts)
        return self.reduce.sum(totals, "the sum over chunks and ranks")

    @cached_property
    def weights(self) -> list[float]:
        """Weight w_c of each of this rank's chunks."""
        if len(self.chunks) * self.reduce.size == 1:
            return [1.0]
        return weights_of(self)

    def check_data(self) -> None:
        """Look for values that are not finite, once a loss was not.

        Raises:
            ValueError: the data of any rank holds such values; says where. On all ranks alike.
        """
        found = nonfinite_entries(self.chunks)
        device = next(self.model.parameters()).device
        (count,) = self.reduce.sum([torch.tensor(float(found is not None), device=device)])
        if count > 0:
            raise ValueError(f"{found or 'the data of another rank holds values that are not finite'}; clean the data")
