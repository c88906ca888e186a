"""What each rank brings to a meeting, as few numbers whose sum shows whether all are there, and agree."""

import zlib

import torch
from torch import Tensor

ROOM = 8
"""So many numbers travel with the meeting that every collective begins with, and need none of their own."""
LANES = 20  # bits of a digest that are summed as floating-point numbers: their squares stay exact for 8,192 ranks
DIGEST = 64 // LANES


def head_of(what: str, failed: bool, numbers: Tensor | None = None) -> Tensor:
    """One for being there, whether this rank has failed, a digest of what it is about to do, and numbers.

    Args:
        what: it is about to do.
        failed: whether it cannot.
        numbers: to be summed on the way, [ROOM] at most, float64 on the CPU.
    """
    digest = zlib.crc32(what.encode()) << 32 | zlib.adler32(what.encode())
    lanes = [digest >> shift & ((1 << LANES) - 1) for shift in range(0, DIGEST * LANES, LANES)]
    own = torch.tensor([1, int(failed), *lanes, *(x * x for x in lanes)], dtype=torch.float64)
    head = torch.cat([own, own.new_zeros(ROOM)])
    if numbers is not None:
        numbers_of(head)[: numbers.numel()] = numbers
    return head


def numbers_of(head: Tensor) -> Tensor:
    """The numbers of a head, [ROOM]."""
    return head[-ROOM:]


def met(head: Tensor, size: int) -> bool:
    """Whether this is the sum of so many ranks' heads, and not this rank's own."""
    return bool(head[0] == size)


def agree(head: Tensor, size: int) -> bool:
    """Whether no rank has failed and all are about to do the same, by the sum of their heads.

    Numbers are equal where the sum of their squares, times how many there are, is the square of their sum.
    """
    _, failed, *sums = (int(x) for x in head[:-ROOM].tolist())
    pairs = zip(sums[:DIGEST], sums[DIGEST:], strict=True)
    return not failed and all(size * square == x * x for x, square in pairs)
