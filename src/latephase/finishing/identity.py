"""Whose run a folder holds: what must be equal for it to be gone on with."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..objective import Objective

Identity = dict[str, str]
"""What must be equal, in words that an error may show, by what it is."""


def identity_of(
    model: nn.Module, scores: Sequence[Objective], budget: str, names: Sequence[str] | None, race: Any
) -> Identity:
    """What must be equal: the model's form, the held-out rows, the budget, the contestants, the race's settings.

    The values of the parameters are not in it: the run has them.

    Args:
        model: that is finished.
        scores: objectives of the held-out data.
        budget: in words.
        names: of the contestants; None for those that fit.
        race: its settings.
    """
    form = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.state_dict().items()]
    chunks = [chunk for objective in scores for chunk in objective.chunks]
    return {
        "model": f"names, shapes and dtypes with checksum {_hash([repr(form).encode()])}",
        "held-out data": f"data with checksum {_hash(_bytes(leaf) for leaf in tree_leaves(_data(chunks)))}",
        "budget": budget,
        "contestants": "those that fit" if names is None else ", ".join(names),
        "settings": str(race),
    }


def difference(one: Mapping[str, str], other: Identity) -> str:
    """In words, the first thing in which a run differs from this one; empty where there is none."""
    for what, here in other.items():
        if one.get(what) != here:
            return f"its {what}: {one.get(what)} there, {here} here"
    return ""


def values_of(state: Mapping[str, Tensor]) -> str:
    """A checksum of tensors."""
    return _hash(_bytes(tensor) for tensor in state.values())


def _data(chunks: Sequence[Any]) -> list[Any]:
    return [(chunk.inputs, chunk.targets) for chunk in chunks]


def _bytes(leaf: Any) -> bytes:
    if not isinstance(leaf, Tensor):
        return repr(type(leaf)).encode()
    plain = leaf.detach().cpu().contiguous()
    return f"{tuple(plain.shape)} {plain.dtype}".encode() + plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def _hash(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]
