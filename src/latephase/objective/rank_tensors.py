"""Tensors of several ranks: which travel with a meeting, and rows of which each rank has some."""

import zlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .rank_traffic import note


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """The size of their numbers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def may_ride(tensors: Sequence[Tensor], most: int) -> bool:
    """Whether so few numbers, on the CPU, travel with a meeting, in float64."""
    floating = all(tensor.is_floating_point() and tensor.device.type == "cpu" for tensor in tensors)
    return 0 < sum(tensor.numel() for tensor in tensors) <= most and floating


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


def rows_of_ranks(
    tensors: Sequence[Tensor], group: dist.ProcessGroup, meeting: dist.ProcessGroup
) -> tuple[Tensor, ...]:
    """Each tensor's rows of all ranks, in their order; the ranks have agreed on everything but how many there are.

    Args:
        tensors: of this rank.
        group: reaches the tensors' device.
        meeting: reaches the CPU.
    """
    counts = torch.zeros(dist.get_world_size(group), len(tensors), dtype=torch.int64)
    counts[dist.get_rank(group)] = torch.tensor([len(tensor) for tensor in tensors])
    dist.all_reduce(counts, group=meeting)
    note(bytes_of([counts]))
    together = []
    for own, numbers in zip(tensors, counts.T.tolist(), strict=True):
        whole = own.new_empty(sum(numbers), *own.shape[1:])
        for rank, part in enumerate(whole.split(numbers)):
            if rank == dist.get_rank(group):
                part.copy_(own)
            if part.numel():  # bytes, since no backend sends every dtype
                dist.broadcast(part.view(-1).view(torch.uint8), group=group, group_src=rank)
                note(bytes_of([part]))
        together.append(whole)
    return tuple(together)
