"""Parts of an objective's data: disjoint ones, and ones drawn at random; of terms a share of each."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from .data import Chunk, take
from .over_terms import OverTerms
from .program import FreeForm
from .rank_protocol import as_one_rank
from .residuals import Residuals, term_of


class Parts(OverTerms):
    """An objective whose data can be divided."""

    def on(self, data: Any) -> Self:
        """The same function of other data."""
        raise NotImplementedError

    @as_one_rank
    def split(self, *sizes: int) -> tuple[Self, ...]:
        """Disjoint parts of the given numbers of rows, in order; of this rank's rows under a process group.

        A rank without rows has none in any part.

        Of an objective made by `from_residuals` each part has rows of each term, in proportion.

        Raises:
            ValueError: the sizes are not positive or exceed the rows there are.
        """
        by_term = self._check_rows()
        if self.idle:
            return tuple(self._renewed() for _ in sizes)
        return tuple(self._part(part) for part in parts_in_order(self.chunks, sizes, by_term))

    @as_one_rank
    def subsample(self, n: int, generator: torch.Generator | None = None) -> Self:
        """An objective on n rows drawn without replacement; of this rank's rows under a process group, if it has any.

        Of an objective made by `from_residuals` they are drawn from each term, in proportion and at least one.

        Args:
            n: number of rows.
            generator: CPU generator to draw with. Default: torch's own.
        """
        by_term = self._check_rows()
        if self.idle:
            return self._renewed()
        return self._part(drawn_rows(self.chunks, n, generator, by_term))

    def _check_rows(self) -> bool:
        """That there are rows; whether they are those of terms, of which every part is to have its share."""
        if isinstance(self.program, FreeForm):
            raise ValueError("an objective made by from_forward has no rows to split or draw from")
        return isinstance(self.program, Residuals)

    def _part(self, rows: Tensor) -> Self:
        chunks = take(self.chunks, rows)
        if not isinstance(self.program, Residuals):
            return self.on([(chunk.inputs, chunk.targets) for chunk in chunks])
        other = self._renewed()
        other.chunks = chunks
        return other


def parts_in_order(chunks: Sequence[Chunk], sizes: Sequence[int], by_term: bool) -> list[Tensor]:
    """Numbers of the rows of disjoint parts, counted through all chunks.

    Args:
        chunks: the data.
        sizes: rows of each part.
        by_term: every part gets its share of each term, the first rows of it first.

    Raises:
        ValueError: the sizes are not positive, exceed the rows there are, or are too small for all terms.
    """
    rows = sum(chunk.rows for chunk in chunks)
    if any(size < 1 for size in sizes) or sum(sizes) > rows:
        raise ValueError(f"cannot split {rows} rows into parts of {', '.join(map(str, sizes))}")
    if not by_term:
        return list(torch.arange(sum(sizes)).split(list(sizes)))
    left = _rows_of_terms(chunks)
    parts: list[list[Tensor]] = []
    for later, size in zip(reversed(range(len(sizes))), sizes, strict=True):
        taken = _shares(size, [len(each) - later for each in left])
        parts.append([each[:count] for each, count in zip(left, taken, strict=True)])
        left = [each[count:] for each, count in zip(left, taken, strict=True)]
    return [torch.cat(part) for part in parts]


def drawn_rows(chunks: Sequence[Chunk], n: int, generator: torch.Generator | None, by_term: bool) -> Tensor:
    """Numbers of rows drawn without replacement, in order, counted through all chunks.

    Args:
        chunks: the data.
        n: how many.
        generator: to draw with, or torch's own.
        by_term: of each term its share.

    Raises:
        ValueError: there are fewer rows, or fewer drawn than there are terms.
    """
    rows = sum(chunk.rows for chunk in chunks)
    if not 1 <= n <= rows:
        raise ValueError(f"cannot draw {n} of {rows} rows")
    if not by_term:
        return torch.randperm(rows, generator=generator)[:n].sort().values
    terms = _rows_of_terms(chunks)
    counts = _shares(n, [len(each) for each in terms])
    drawn = [
        each[torch.randperm(len(each), generator=generator)[:count].sort().values]
        for each, count in zip(terms, counts, strict=True)
    ]
    return torch.cat(drawn)


def _rows_of_terms(chunks: Sequence[Chunk]) -> list[Tensor]:
    """The numbers of each term's rows, whose chunks follow each other."""
    counts: dict[str, int] = {}
    for chunk in chunks:
        counts[term_of(chunk)] = counts.get(term_of(chunk), 0) + chunk.rows
    return list(torch.arange(sum(counts.values())).split(list(counts.values())))


def _shares(n: int, rows: Sequence[int]) -> list[int]:
    """How many of n rows each term gives: one at least, and the others in proportion to its rows.

    Raises:
        ValueError: there is not one for each.
    """
    if n < len(rows) or min(rows) < 1 or n > sum(rows):
        raise ValueError(
            f"{n} rows cannot hold a share of each of {len(rows)} terms, which have {', '.join(map(str, rows))} to "
            "give; ask for more rows, for fewer parts, or make an objective of the terms' points with `on`"
        )
    spare, others = n - len(rows), sum(rows) - len(rows)
    exact = [spare * (count - 1) / max(others, 1) for count in rows]
    shares = [1 + int(each) for each in exact]
    order = sorted(range(len(rows)), key=lambda i: int(exact[i]) - exact[i])  # largest remainder first
    for place in order[: n - sum(shares)]:
        shares[place] += 1
    return shares
