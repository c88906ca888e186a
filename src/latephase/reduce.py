"""Sums over ranks: of one process alone, and of a torch.distributed process group."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Reduce(Protocol):
    """What the objective needs of a set of ranks."""

    rank: int
    size: int

    def sum(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Sum each tensor over the ranks; may overwrite its arguments."""
        ...

    def share(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor, on every rank."""
        ...

    def check_equal(self, tensors: Sequence[Tensor], names: Sequence[str]) -> None:
        """Raise ValueError where ranks hold different parameters."""
        ...


class Local:
    """One process: every sum is its own term."""

    rank = 0
    size = 1

    def sum(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the tensors as they are."""
        return tuple(tensors)

    def share(self, tensor: Tensor) -> Tensor:
        """Return the tensor as it is."""
        return tensor

    def check_equal(self, tensors: Sequence[Tensor], names: Sequence[str]) -> None:
        """One rank agrees with itself."""


class ProcessGroup:
    """Sums over the ranks of a torch.distributed process group.

    Args:
        group: the process group; its backend must reach the tensors' device (gloo: CPU, nccl: CUDA).
    """

    def __init__(self, group: dist.ProcessGroup):
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def sum(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """All-reduce each tensor in place and return it."""
        summed = tuple(tensor.contiguous() for tensor in tensors)
        for tensor in summed:
            dist.all_reduce(tensor, group=self.group)
        return summed

    def share(self, tensor: Tensor) -> Tensor:
        """Broadcast the first rank's tensor."""
        tensor = tensor.contiguous()
        dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor

    def check_equal(self, tensors: Sequence[Tensor], names: Sequence[str]) -> None:
        """Compare number and fingerprints of the parameters over the ranks.

        Raises:
            ValueError: on every rank alike, naming the first parameter that differs.
        """
        device = tensors[0].device
        low, high = self._extremes(torch.tensor([float(len(tensors))], dtype=torch.float64, device=device))
        if low.item() != high.item():
            raise ValueError(f"ranks hold {int(low)} to {int(high)} parameters; build the same model on each rank")
        low, high = self._extremes(torch.stack([_fingerprint(tensor) for tensor in tensors]))
        same = (low == high) | (low.isnan() & high.isnan())
        different = (~same).any(dim=1).nonzero().flatten().tolist()
        if different:
            raise ValueError(
                f"{names[different[0]]!r} differs between ranks ({len(different)} of {len(names)} tensors do); start "
                "every rank from the same parameters and optimizer state, for example with torch.distributed.broadcast"
            )

    def _extremes(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        low, high = tensor.clone(), tensor.clone()
        dist.all_reduce(low, op=dist.ReduceOp.MIN, group=self.group)
        dist.all_reduce(high, op=dist.ReduceOp.MAX, group=self.group)
        return low, high


def _fingerprint(tensor: Tensor) -> Tensor:
    """Three numbers that change with the values and with their order [3]."""
    values = tensor.detach().double().flatten()
    order = torch.arange(values.numel(), dtype=values.dtype, device=values.device).cos()
    return torch.stack([values.sum(), values.norm(), torch.dot(values, order)])
