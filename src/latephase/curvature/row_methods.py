"""What a linearisation offers of the rows J~ of the Gauss-Newton matrix."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..objective import FreeForm, Objective
from ..parameters import ParameterSpace
from .chunk import ChunkCurvature
from .chunk_task import ChunkTask
from .eager import ForwardPass
from .rows import ChunkRows, is_squared_error, kernel_of, residual_of_free_form, residual_of_pass, together


class RowMethods:
    """The rows of a linearisation, which has the attributes named here."""

    curvature: str
    objective: Objective
    source: Objective
    space: ParameterSpace
    _parts: list[ChunkCurvature | ChunkTask]
    _decay: list[float]
    kept: dict[Hashable, Any]

    def _check_unchanged(self) -> None:
        raise NotImplementedError

    def _check_parts(self) -> None:
        raise NotImplementedError

    def rows(self) -> Tensor:
        """J~ [R, P] with J~'J~ the Gauss-Newton matrix, without the L2 term, whose share is the coefficients' diagonal.

        J~ = S'J with S S' the Hessian of the loss in the outputs and J the outputs' Jacobian: a row for each number of
        the outputs (of cross-entropy, rows times classes), scaled by the root of what the chunk weighs, in the order of
        the data; of all chunks, and of all ranks on every rank. In the parameters' own dtype, whatever the products'.

        Raises:
            ValueError: the curvature is the Hessian; the loss has no known root (see `GGNDiagonal`; of `from_forward`,
                it is no sum of convex functions of single numbers of the outputs); or examples depend on each other, as
                with batch norm in training mode.
            RuntimeError: as `matvec`.
            MemoryError: there is no room for so many numbers: `row_pieces` has a part of them at a time.
        """
        self._check_rows()
        if self.source.reduce.size == 1 and self._keeps_graphs():
            return together([self._rows_of(index) for index in range(len(self._parts))])
        return self.source.rows(lambda chunk, index: (self._rows_of(index).whole(),))[0]

    def row_pieces(self, most: int | None = None) -> Iterator[Tensor]:
        """The same rows of this rank's chunks, in order, [r, P] at a time; for sums such as J~'J~, or J~'r.

        Args:
            most: rows in a piece. Default: as many as memory, and the objective's `memory_limit`, allow.

        Raises:
            ValueError: as `rows`; that examples depend on each other is said after a chunk's last piece.
            RuntimeError: as `matvec`.
        """
        if most is not None and not (isinstance(most, int) and most >= 1):
            raise ValueError(f"most must be None or an integer >= 1, got {most!r}")
        for index in range(0 if self.source.idle else len(self.source.chunks)):
            self._check_rows()
            yield from self._rows_of(index).pieces(most)

    def row_kernel(self) -> Tensor:
        """The kernel J~J~' [R, R] of the rows, of all chunks and ranks; for a dual solve with few rows.

        Where the backward pass can be followed, it is a sum over the parameters, so that of J~ no more than one
        parameter's columns are in memory: of a layer with slopes d and inputs a (d d') * (a a'). Elsewhere, and under a
        process group of several ranks, all rows are.

        Raises:
            ValueError: as `rows`.
            RuntimeError: as `matvec`.
            MemoryError: there is no room for so many numbers.
        """
        self._check_rows()
        if self.source.reduce.size == 1:
            found = kernel_of([self._rows_of(index) for index in range(len(self._parts))])
            if found is not None:
                return found
        rows = self.rows()
        return rows @ rows.T

    def row_count(self) -> int:
        """R, how many rows there are, over all chunks and ranks; of which none is computed.

        Raises:
            ValueError: as `rows`.
            RuntimeError: as `matvec`.
        """
        self._check_rows()
        chunks = range(len(self.source.chunks))
        own = sum(self._rows_of(index).count for index in chunks)
        return sum(self.source.reduce.gather(0 if self.source.idle else own))

    def residual(self) -> Tensor | None:
        """The vector r [R] with J~'r the gradient without the L2 term: of a squared error the residuals themselves.

        Returns:
            The vector, in the order and the scale of the rows; None where the loss does not tell it: it is known of
            torch's own losses that have rows, but for a cross-entropy whose probabilities underflow.

        Raises:
            ValueError: as `rows`.
            RuntimeError: as `matvec`.
        """
        self._check_rows()
        chunks = range(len(self.source.chunks))
        found = [each for index in chunks if (each := self._rows_of(index).residual()) is not None]
        known = all(self.source.reduce.gather(len(found) == len(chunks)))
        return self.source.rows(lambda chunk, index: (found[index],))[0] if known else None

    def residual_at(self, values: Tensor) -> Tensor | None:
        """The same of other parameters, without their gradient; None where J~ has a scale that moves with them.

        Args:
            values: of the parameters [P].

        Returns:
            r [R] of a squared error, and of `from_forward` where the loss has the same second derivatives in the
            outputs there as here; None of any other loss, and with structural damping.
        """
        at, objective = self.space.named(values), self.objective
        if self.source is not objective:
            return None
        if isinstance(objective.program, FreeForm):  # of one chunk, on one rank
            objective.value_calls += 1
            return residual_of_free_form(objective, self._rows_of(0).scale(), at, self.space.dtype)
        if not all(objective.reduce.gather(is_squared_error(objective.program))):
            return None
        objective.value_calls += 1

        def of_chunk(chunk, index):
            return (residual_of_pass(objective, chunk, index, at, self.space.dtype),)

        return objective.rows(of_chunk)[0]

    def decay(self) -> Tensor | None:
        """The L2 term's coefficient of each parameter [P], the diagonal of its Hessian; None where all are zero."""
        if not any(self._decay):
            return None
        pieces = zip(self._decay, self.space.sizes, strict=True)
        like = {"dtype": self.space.dtype, "device": self.space.device}
        return torch.cat([torch.full((size,), decay, **like) for decay, size in pieces])

    def gram(self, sizes: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> list[Tensor]:
        """J~'J~, the Gauss-Newton matrix without the L2 term, from rows in pieces, of which one is in memory at a time.

        Args:
            sizes: of consecutive blocks of parameters, whose matrices alone are formed. Default: one of all [P, P].
            dtype: in which products of rows are added up. Default: that of the rows.

        Returns:
            The matrix of each block.

        Raises:
            ValueError: as `rows`.
            RuntimeError: as `matvec`.
        """
        self._check_rows()
        sizes = [self.space.size] if sizes is None else list(sizes)
        dtype = dtype or self.space.dtype

        def of_chunk(chunk, index):
            found = [torch.zeros(size, size, dtype=dtype, device=self.space.device) for size in sizes]
            for piece in self._rows_of(index, weighed=False).pieces():
                for matrix, columns in zip(found, piece.to(dtype).split(sizes, dim=1), strict=True):
                    matrix.addmm_(columns.mT, columns)
            return tuple(found)

        return list(self.source.sum(of_chunk))

    def _check_rows(self) -> None:
        if self.curvature != "ggn":
            raise ValueError("the Hessian is no product J~'J~ and has no rows; linearize with curvature='ggn'")
        self._check_unchanged()
        self._check_parts()

    def _keeps_graphs(self) -> bool:
        """Whether the rows of any number of chunks take no more passes than are kept."""
        kept = [part.has_graph for part in self._parts if isinstance(part, ChunkCurvature)]
        return len(self._parts) == 1 or (len(kept) == len(self._parts) and all(kept))

    def _rows_of(self, index: int, weighed: bool = True) -> ChunkRows:
        """The rows of a chunk, made once where its graph is there for as long as the linearisation is."""
        part, key = self._parts[index], ("rows", index, weighed)
        if key in self.kept:
            return self.kept[key]
        forward = part.forward() if isinstance(part, ChunkCurvature) else ForwardPass(part.in_own_dtype())
        found = ChunkRows(forward, self.source.weights[index] if weighed else 1.0)
        if isinstance(part, ChunkCurvature) and part.has_graph and part.task.dtype is None:
            self.kept[key] = found
        return found
