"""What ranks compare, and what differs between them, in words."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MOST = 6
"""Differences that are named; the values are those of the first."""


def text_of(value: Any) -> str:
    """A value as a text that is equal where the value is: of a tensor, dtype, shape and checksum."""
    if isinstance(value, Tensor):
        bits = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} with checksum {zlib.crc32(bits):08x}"
    return str(value)


def difference(told: Mapping[int, Mapping[str, str]]) -> str:
    """What differs between ranks, in words."""
    names = list(dict.fromkeys(name for texts in told.values() for name in texts))
    different = [name for name in names if len({texts.get(name) for texts in told.values()}) > 1]
    first, more = different[0], f", {len(different) - MOST} more" if len(different) > MOST else ""
    listed = f": {', '.join(map(repr, different[:MOST]))}{more}" if len(different) > 1 else ""
    values = {rank: texts.get(first, "none") for rank, texts in told.items()}
    return (
        f"{first!r} differs between ranks ({len(different)} of {len(names)} things compared do{listed}): "
        f"{by_rank(values)}; "
        "start every rank from the same parameters, options and optimizer state, for example with "
        "torch.distributed.broadcast"
    )


def by_rank(values: Mapping[int, str]) -> str:
    """Ranks with equal values together."""
    ranks: dict[str, list[int]] = {}
    for rank, value in values.items():
        ranks.setdefault(value, []).append(rank)
    return "; ".join(
        f"{'rank' if len(those) == 1 else 'ranks'} {', '.join(map(str, those))}: {value}"
        for value, those in ranks.items()
    )
