"""What is checked of a state dict whose entries are a base optimizer's."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, is_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from ..parts import array, fields, number, wholes


def check_group(where: str, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check what a param group carries, and the base's own options by what their defaults are.

    Args:
        where: named in errors.
        group: of the state dict, complete.
        defaults: the base's options.

    Raises:
        ValueError: naming the entry.
    """
    wholes(f"{where}['forms']", group["forms"])
    if group["adapted_damping"] is not None:
        number(f"{where}['adapted_damping']", group["adapted_damping"])
    for name in ("lr", "unit_lr"):
        _number(f"{where}[{name!r}]", group.get(name, 1.0))
    if not float(group.get("unit_lr", 1.0)) > 0:
        raise ValueError(f"{where}['unit_lr'] must be above 0, got {group['unit_lr']!r}")
    for name, default in defaults.items():
        value = group[name]
        if isinstance(default, bool):
            if not isinstance(value, (bool, type(None))):
                raise ValueError(f"{where}[{name!r}] must be True or False, got {value!r}")
        elif isinstance(default, (int, float)):
            _number(f"{where}[{name!r}]", value)
        elif isinstance(default, tuple):
            if not isinstance(value, (tuple, list)) or len(value) != len(default):
                raise ValueError(f"{where}[{name!r}] must be {len(default)} numbers, got {value!r}")
            for index, each in enumerate(value):
                _number(f"{where}[{name!r}][{index}]", each)


def _number(where: str, value: Any) -> None:
    single = isinstance(value, (int, float)) or (is_tensor(value) and value.numel() == 1)
    if not single or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, got {value!r}")


def check_state(
    base: Optimizer, state: Mapping[Any, Any], own: Mapping[Any, Tensor], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Check the entries of a state dict: numbers that are, and what the base needs, where it is one of torch's.

    Args:
        base: the optimizer.
        state: entries by the parameters' numbers.
        own: the parameters by these numbers.
        groups: of the state dict, complete.

    Raises:
        ValueError: naming entry and key, and what was expected.
    """
    for index, entry in state.items():
        for key, value in entry.items():
            for leaf in tree_leaves(value):
                if (is_tensor(leaf) and bool(leaf.isnan().any())) or (isinstance(leaf, float) and math.isnan(leaf)):
                    raise ValueError(f"state_dict['state'][{index!r}][{key!r}] holds values that are not a number")
    if not type(base).__module__.startswith("torch.optim"):
        return
    expected = _first_state(base, own, groups)
    for index, entry in state.items():
        where, needed = f"state_dict['state'][{index!r}]", expected[index]
        if entry and needed:
            fields(where, entry, tuple(needed), tuple(entry))
            for key, example in needed.items():
                if is_tensor(example):
                    array(f"{where}[{key!r}]", entry[key], tuple(example.shape), finite=False)


def _first_state(
    base: Optimizer, own: Mapping[Any, Tensor], groups: Sequence[Mapping[str, Any]]
) -> dict[Any, dict[str, Any]]:
    """The state that the base has after a first step with these groups, by the parameters' numbers."""
    stand_ins = {number: torch.zeros_like(p) for number, p in own.items()}
    for tensor in stand_ins.values():
        tensor.grad = torch.zeros_like(tensor)
    state, kept = base.state, base.param_groups
    begun = {stand_ins[n]: {k: _copied(v) for k, v in state[p].items()} for n, p in own.items() if p in state}
    try:
        base.state = defaultdict(dict, begun)
        base.param_groups = [{**group, "params": [stand_ins[number] for number in group["params"]]} for group in groups]
        base.step()
        return {number: dict(base.state.get(tensor, {})) for number, tensor in stand_ins.items()}
    finally:
        base.state, base.param_groups = state, kept


def _copied(value: Any) -> Any:
    return value.clone() if is_tensor(value) else value
