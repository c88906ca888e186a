"""Squared norms and inner products of lists of tensors, as tensors of one number that stay on their device."""

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor | None]


def squared_norm(vectors: Tensors) -> Tensor:
    """|x|^2 [] of all entries, summed in float64 where the device has it; those that are None count as zero."""
    return _added([torch.linalg.vector_norm(dense(x), dtype=_wide(x)).square() for x in vectors if x is not None])


def squared_distance(left: Tensors, right: Tensors) -> Tensor:
    """|x - y|^2 [] of all entries; pairs of which one is None count as zero."""
    return squared_norm([x - y for x, y in _pairs(left, right)])


def inner_product(left: Tensors, right: Tensors) -> Tensor:
    """<x, y> [] of all entries, each tensor's own in at least float32; pairs of which one is None count as zero."""
    products = []
    for x, y in _pairs(left, right):
        dtype = torch.promote_types(x.dtype, torch.float32)
        products.append(torch.dot(x.reshape(-1).to(dtype), y.reshape(-1).to(dtype)).to(_wide(x)))
    return _added(products)


def copied(vectors: Tensors) -> list[Tensor | None]:
    """Detached dense copies."""
    return [None if x is None else dense(x).clone(memory_format=torch.preserve_format) for x in vectors]


def dense(x: Tensor) -> Tensor:
    """The tensor without its graph, sparse ones as dense ones."""
    x = x.detach()
    return x if x.layout == torch.strided else x.to_dense()


def _pairs(left: Tensors, right: Tensors) -> list[tuple[Tensor, Tensor]]:
    # What was loaded from a file may lie elsewhere.
    return [(x, y.to(x.device)) for x, y in zip(left, right, strict=True) if x is not None and y is not None]


def _added(numbers: Sequence[Tensor]) -> Tensor:
    if not numbers:
        return torch.zeros((), dtype=torch.float64)
    first = numbers[0].device
    return torch.stack([number.to(first) for number in numbers]).sum()


def _wide(x: Tensor) -> torch.dtype:
    """Float64, in which sums of many small numbers keep their digits; Apple's devices have none."""
    return torch.float32 if x.device.type == "mps" else torch.float64
