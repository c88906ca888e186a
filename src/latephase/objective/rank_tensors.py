"""Tensors of several ranks: which travel with a meeting, and rows of which each rank has some."""

import pickle
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """The size of their numbers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def may_ride(tensors: Sequence[Tensor], most: int) -> bool:
    """Whether so few numbers, on the CPU, travel with a meeting, in float64."""
    floating = all(tensor.is_floating_point() and tensor.device.type == "cpu" for tensor in tensors)
    return 0 < sum(tensor.numel() for tensor in tensors) <= most and floating


def size_of(given: Sequence[Any]) -> int:
    """Bytes of what is given to a collective: a tensor, or a list to be filled and a value that is pickled."""
    return bytes_of(given) if isinstance(given[0], Tensor) else len(pickle.dumps(given[1]))


def form_of_sum(tensors: Sequence[Tensor], rides: bool) -> str:
    """What ranks must have in common to add their tensors up, in words.

    Args:
        tensors: of this rank.
        rides: whether they travel with the meeting, in float64 whatever their dtypes are.
    """
    numel = sum(tensor.numel() for tensor in tensors)
    shapes = f", shapes {zlib.crc32(repr([tuple(each.shape) for each in tensors]).encode()):08x}"
    if rides:
        return f"{len(tensors)} tensors with {numel} numbers{shapes if len(tensors) > 1 else ''}, sent along"
    dtypes = " and ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
    kinds = " and ".join(sorted({tensor.device.type for tensor in tensors}))
    where = f" in {dtypes} on {kinds}" if tensors else ""
    return f"{len(tensors)} tensors with {numel} numbers{where}{shapes if len(tensors) > 1 else ''}"


def form_of_rows(tensor: Tensor) -> str:
    """What ranks must have in common to put their rows together, in words."""
    return f"{str(tensor.dtype).removeprefix('torch.')} rows of shape {list(tensor.shape[1:])}"


class RowsOfRanks:
    """Each tensor's rows of all ranks, in their order; the ranks have agreed on everything but how many there are.

    Args:
        tensors: of this rank.
        group: reaches the tensors' device.

    Attributes:
        counts: of this rank's rows [ranks, tensors], to be summed over the ranks on the CPU.
        together: the tensors of all ranks, once the broadcasts are done.
    """

    def __init__(self, tensors: Sequence[Tensor], group: dist.ProcessGroup):
        self._tensors, self._group = tensors, group
        self.counts = torch.zeros(dist.get_world_size(group), len(tensors), dtype=torch.int64)
        self.counts[dist.get_rank(group)] = torch.tensor([len(tensor) for tensor in tensors])
        self.together: tuple[Tensor, ...] = ()

    def broadcasts(self) -> list[Callable[[], Any]]:
        """What sends the rows, by the counts of all ranks."""
        together, found = [], []
        for own, numbers in zip(self._tensors, self.counts.T.tolist(), strict=True):
            whole = own.new_empty(sum(numbers), *own.shape[1:])
            for rank, part in enumerate(whole.split(numbers)):
                if rank == dist.get_rank(self._group):
                    part.copy_(own)
                if part.numel():  # bytes, since no backend sends every dtype
                    sent = part.view(-1).view(torch.uint8)
                    found.append(partial(dist.broadcast, sent, group=self._group, group_src=rank))
            together.append(whole)
        self.together = tuple(together)
        return found
