"""Equality to the last bit."""

import copy
from typing import Any

import torch
from torch import Tensor


def bits(tree: Any) -> Any:
    """A tree with every tensor as dtype, shape and bytes, so that == compares bit for bit (NaN equals itself)."""
    if isinstance(tree, Tensor):
        raw = tree.detach().clone().contiguous().reshape(-1).view(torch.uint8) if tree.numel() else tree
        return str(tree.dtype), tuple(tree.shape), bytes(raw.tolist())
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [bits(value) for value in tree]
    return copy.deepcopy(tree)
