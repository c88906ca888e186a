"""What a direct solve needs, known from its sizes alone before anything of it is computed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...solve import TRIALS

COPIES = 3
"""Matrices of the smaller side that are alive at once: the product of the rows, with the damping on it, its factor."""
PROBED = 768
"""Rows of the matrices whose product is timed, large enough for the speed that large ones have."""
PIECES = 2**28
"""Bytes that rows take where they come in pieces (`curvature.Linearization.row_pieces`), at most."""


@dataclass(frozen=True)
class DirectPlan:
    """What one step of a direct solve takes, beside the pass over the model itself.

    Attributes:
        rows: R of J~.
        size: P, parameters.
        side: "primal" or "dual"; with several blocks that of the largest.
        whole: whether J~ is in memory as a whole; elsewhere J~'J~ is added up in pieces.
        bytes: that are alive at once, to some 20 %; of Cholesky decompositions where the factorisation is "auto".
        most_bytes: the same where the damping falls below the rounding of J~'J~, so that a factorisation that is left
            to choose becomes a singular value decomposition, or eigenvectors where J~ is not whole.
        multiplications: of the matrix and one decomposition; the rows themselves are some passes over the model.
    """

    rows: int
    size: int
    side: str
    whole: bool
    bytes: int
    most_bytes: int
    multiplications: float

    def __str__(self) -> str:
        """One sentence."""
        how = "" if self.whole else ", added up in pieces"
        most = f" ({_in_words(self.most_bytes)} at the smallest dampings)" if self.most_bytes > self.bytes else ""
        return (
            f"{self.rows:,} rows of {self.size:,} parameters, solved on the {self.side} side{how}: "
            f"{_in_words(self.bytes)}{most} and about {self.multiplications:.0e} multiplications a step"
        )

    def check_fit(self, free: int) -> None:
        """Raise where there is no room.

        Args:
            free: bytes.

        Raises:
            MemoryError: naming what is needed, what is free, and what would do.
        """
        if self.bytes <= free:
            return
        remedies = ["fewer rows (curvature_objective=objective.subsample(n))", "HessianFree, which needs no rows"]
        remedies.append("curvature within blocks of parameters alone (param groups and blocks=True)")
        remedies.append("Direct(dtype=torch.float32) or parameters of that dtype")
        if self.whole and self.rows >= self.size:
            remedies.append("the primal side by Cholesky, whose matrix is added up from pieces of the rows")
        raise MemoryError(
            f"a direct solve for {self.rows:,} rows of {self.size:,} parameters takes {_in_words(self.bytes)} on the "
            f"{self.side} side, but {_in_words(free)} are free; take {'; or '.join(remedies)}"
        )


def plan_of(
    rows: int, blocks: Sequence[int], dtype: torch.dtype, own: torch.dtype, side: str, factorization: str, room: float
) -> DirectPlan:
    """The plan of a direct solve.

    Args:
        rows: R.
        blocks: sizes of the blocks of parameters.
        dtype: of the solve.
        own: of the parameters, in which rows are computed.
        side: as in `Direct`.
        factorization: as in `Direct`.
        room: bytes that J~ may take where it is not needed whole.
    """
    size, unit, largest = sum(blocks), dtype.itemsize, max(blocks, default=0)
    whole = needs_whole(rows, size, side, factorization) or rows * size * unit <= room
    sides = {block: _side(rows, block, side, whole) for block in blocks}
    short = [rows if sides[block] == "dual" else block for block in blocks]
    jacobian = rows * size * unit
    converted = jacobian + (rows * size * own.itemsize if own != dtype else 0)
    held = jacobian if whole else min(PIECES, 4 * jacobian)
    matrices = {"cholesky": COPIES, "eigh": COPIES + 1}
    squares = unit * sum(n * n for n in short)

    def needed(method: str) -> int:
        if method == "svd":  # Q, its product with the singular vectors, and matrices of the shorter side
            return 3 * jacobian + 4 * unit * max((min(rows, n) ** 2 for n in blocks), default=0)
        return max(held + matrices[method] * squares, converted if whole else 0)

    first = "cholesky" if factorization == "auto" else factorization
    last = ("svd" if whole else "eigh") if factorization == "auto" else first
    work = sum(_multiplications(rows, block, n, first) for block, n in zip(blocks, short, strict=True))
    most = max(needed(first), needed(last))
    return DirectPlan(rows, size, sides.get(largest, "primal"), whole, needed(first), most, work)


def needs_whole(rows: int, size: int, side: str, factorization: str) -> bool:
    """Whether J~ must be in memory as a whole."""
    return (rows < size and side == "auto") or side == "dual" or factorization == "svd"


def _side(rows: int, size: int, side: str, whole: bool) -> str:
    if side != "auto":
        return side
    return "dual" if whole and rows < size else "primal"


def _multiplications(rows: int, size: int, n: int, method: str) -> float:
    if method == "svd":
        short, long = min(rows, size), max(rows, size)
        return 3.0 * short**2 * long + 10.0 * short**3
    decomposition = n**3 / 6 * (TRIALS if method == "eigh" else 1)
    return n**2 * (rows if n == size else size) / 2 + decomposition


def _in_words(count: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} TB" if count >= 100 else f"{count:.3g} TB"


def multiplications_per_second(
    dtype: torch.dtype, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """What a product of matrices reaches here, the fastest of four; a plan's multiplications over it are seconds.

    Args:
        dtype: of the matrices.
        device: where they are.
        clock: of the seconds. Default: what passes.
    """
    matrix = torch.ones(PROBED, PROBED, dtype=dtype, device=device)
    found = []
    for _ in range(4):
        started = clock()
        float((matrix @ matrix)[0, 0])  # waits for the device
        found.append(clock() - started)
    return PROBED**3 / min(found)
