"""State dicts that are loaded: of earlier versions completed, damaged ones named, before anything is taken over."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

VERSION = 1
"""Of the state dicts; those without a version were written before there was one."""

_COUNTS = ("rises", "iterations", "steps", "age")


def completed(
    optimizer: Optimizer, state_dict: Mapping[str, Any], check: Callable[[Sequence[Mapping[str, Any]]], None]
) -> dict[str, Any]:
    """A state dict with the options that came later at the optimizer's own values, once it is found to be sound.

    Args:
        optimizer: that loads it; nothing of it is changed.
        state_dict: what is loaded.
        check: raises ValueError where param groups hold options that will not do.

    Raises:
        ValueError: the state dict is of a later version, or damaged; says where.
    """
    name = type(optimizer).__name__
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(f"no state dict of {name}: it must hold 'state' and 'param_groups'")
    version = state_dict.get("version", 0)
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"a state dict of {name} of version {version!r}; this latephase reads versions up to {VERSION}"
        )
    groups = state_dict["param_groups"]
    if not isinstance(groups, (list, tuple)) or not all(
        isinstance(group, Mapping) and "params" in group for group in groups
    ):
        raise ValueError(f"damaged state dict of {name}: 'param_groups' must be a list of dicts that hold 'params'")
    whole = [dict(optimizer.defaults) | dict(group) for group in groups]
    try:
        check(whole)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"damaged state dict of {name}, in its param groups: {error}") from error
    state = state_dict["state"]
    if not isinstance(state, Mapping) or not all(isinstance(entry, Mapping) for entry in state.values()):
        raise ValueError(f"damaged state dict of {name}: 'state' must be a dict of one dict per parameter")
    own = [p for group in optimizer.param_groups for p in group["params"]]
    for index, p in zip([index for group in groups for index in group["params"]], own, strict=False):
        for key, value in state.get(index, {}).items():
            if wrong := _wrong(key, value, p):
                raise ValueError(f"damaged state dict of {name}: {key!r} of parameter {index} {wrong}")
    return {**state_dict, "param_groups": whole}


def _wrong(key: str, value: Any, p: Tensor) -> str | None:
    """What is wrong with an entry of the state, in words."""
    if key == "damping":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (
            None if number and math.isfinite(value) and value >= 0 else f"must be a finite number >= 0, got {value!r}"
        )
    if key in _COUNTS:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return None if whole else f"must be a whole number >= 0, got {value!r}"
    if key in ("x0", "update"):
        if not isinstance(value, Tensor) or value.shape != p.shape:
            return f"must be a tensor of shape {list(p.shape)}, got {_kind(value)}"
        return None if bool(torch.isfinite(value).all()) else "holds values that are not finite"
    if key == "preconditioner":
        if not isinstance(value, Mapping) or not {"age", "blocks", "estimate"} <= value.keys():
            return "must hold age, blocks and estimate"
        estimate = value["estimate"]
        sound = isinstance(estimate, Mapping) and all(isinstance(each, Tensor) for each in estimate.values())
        return None if sound else "must hold tensors as its estimate"
    return None


def _kind(value: Any) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
