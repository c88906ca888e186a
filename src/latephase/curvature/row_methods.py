"""What a linearisation offers of the rows J~ of the Gauss-Newton matrix."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from ..objective import Objective
from ..parameters import ParameterSpace
from .chunk import ChunkCurvature
from .eager import ForwardPass
from .rows import ChunkRows, kernel_of, together


class RowMethods:
    """The rows of a linearisation, which has the attributes named here."""

    curvature: str
    objective: Objective
    space: ParameterSpace
    _parts: list[ChunkCurvature | Mapping[str, Tensor]]

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
            ValueError: the curvature is the Hessian; the loss has no known root (see `GGNDiagonal`), as that of
                `from_forward`; or examples depend on each other, as with batch norm in training mode.
            RuntimeError: as `matvec`.
            MemoryError: there is no room for so many numbers: `row_pieces` has a part of them at a time.
        """
        self._check_rows()
        if self.objective.reduce.size == 1 and self._keeps_graphs():
            return together([self._rows_of(index) for index in range(len(self._parts))])
        return self.objective.rows(lambda chunk, index: (self._rows_of(index).whole(),))[0]

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
        for index in range(len(self.objective.chunks)):
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
        if self.objective.reduce.size == 1:
            found = kernel_of([self._rows_of(index) for index in range(len(self._parts))])
            if found is not None:
                return found
        rows = self.rows()
        return rows @ rows.T

    def _check_rows(self) -> None:
        if self.curvature != "ggn":
            raise ValueError("the Hessian is no product J~'J~ and has no rows; linearize with curvature='ggn'")
        self._check_unchanged()
        self._check_parts()

    def _keeps_graphs(self) -> bool:
        """Whether the rows of any number of chunks take no more passes than are kept."""
        kept = [part.has_graph for part in self._parts if isinstance(part, ChunkCurvature)]
        return len(self._parts) == 1 or (len(kept) == len(self._parts) and all(kept))

    def _rows_of(self, index: int) -> ChunkRows:
        part, chunk = self._parts[index], self.objective.chunks[index]
        kept = isinstance(part, ChunkCurvature)
        forward = part.forward() if kept else ForwardPass(self.objective, chunk, index, self.space, part)
        return ChunkRows(forward, self.objective.weights[index])
