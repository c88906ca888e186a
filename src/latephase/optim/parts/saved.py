"""State dicts: their version, what is checked before one is loaded, and loading it with the dtypes that it has."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, is_tensor
from torch.utils._pytree import tree_map

VERSION = 3
"""Of state dicts; earlier ones are read. Before 3 the options of K-FAC and quadratic learning rates were flat, before 2
those of `HessianFree`, and before 1 there was no version."""

Check = Callable[[str, Any, Tensor], None]
"""(where, value, the parameter) -> ValueError, saying where, where it is not what it should be."""


def check_frame(saved: Any, groups: Sequence[Mapping[str, Any]], kind: str) -> dict[Any, Tensor]:
    """Check everything of a state dict but the entries of its state and the options of its groups.

    Args:
        saved: the state dict.
        groups: the optimizer's param groups.
        kind: the optimizer's.

    Returns:
        The parameters by the numbers that they have in the state dict.

    Raises:
        ValueError: naming what is missing or wrong.
    """
    if not isinstance(saved, Mapping):
        raise ValueError(f"state_dict must be a dict as state_dict() returns it, got {type(saved).__name__}")
    for name, expected in (("state", Mapping), ("param_groups", (list, tuple))):
        if name not in saved:
            raise ValueError(f"state_dict has no {name!r}: it is damaged, or not an optimizer's")
        if not isinstance(saved[name], expected):
            what = "a dict" if expected is Mapping else "a list"
            raise ValueError(f"state_dict[{name!r}] must be {what}, got {type(saved[name]).__name__}")
    version = saved.get("version", 0)
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version <= VERSION:
        raise ValueError(
            f"state_dict has version {version!r}, and this release of latephase reads versions up to {VERSION}: it was "
            "saved by a later release, or is damaged"
        )
    if saved.get("optimizer", kind) != kind:
        raise ValueError(f"state_dict is that of {saved['optimizer']}, and cannot be loaded into {kind}")
    own = _numbered(saved["param_groups"], groups)
    for number, entry in saved["state"].items():
        if number not in own:
            raise ValueError(f"state_dict['state'] has an entry {number!r}, and its param groups no such parameter")
        if not isinstance(entry, Mapping):
            raise ValueError(f"state_dict['state'][{number!r}] must be a dict, got {type(entry).__name__}")
    return own


def _numbered(saved: Sequence[Any], groups: Sequence[Mapping[str, Any]]) -> dict[Any, Tensor]:
    if len(saved) != len(groups):
        raise ValueError(f"state_dict has {len(saved)} param groups, the optimizer has {len(groups)}")
    own: dict[Any, Tensor] = {}
    for index, (group, kept) in enumerate(zip(saved, groups, strict=True)):
        where = f"state_dict['param_groups'][{index}]"
        if not isinstance(group, Mapping):
            raise ValueError(f"{where} must be a dict, got {type(group).__name__}")
        if not isinstance(group.get("params"), (list, tuple)):
            raise ValueError(
                f"{where} must have a list 'params' of the parameters' numbers, got {group.get('params')!r}"
            )
        if len(group["params"]) != len(kept["params"]):
            raise ValueError(
                f"{where} has {len(group['params'])} parameters, the optimizer's group has {len(kept['params'])}"
            )
        try:
            own.update(zip(group["params"], kept["params"], strict=True))
        except TypeError as error:
            raise ValueError(f"{where}['params'] must be numbers, got {group['params']!r}") from error
    if len(own) != sum(len(group["params"]) for group in groups):
        raise ValueError("state_dict['param_groups'] names a parameter twice")
    return own


def check_entries(
    state: Mapping[Any, Mapping[str, Any]], own: Mapping[Any, Tensor], checks: Mapping[str, Check]
) -> None:
    """Check the state of each parameter.

    Args:
        state: entries by the parameters' numbers.
        own: the parameters by these numbers.
        checks: of each key that there may be.

    Raises:
        ValueError: naming entry and key, and what was expected.
    """
    for number, entry in state.items():
        for key, value in entry.items():
            where = f"state_dict['state'][{number!r}][{key!r}]"
            if key not in checks:
                raise ValueError(f"{where} is unknown: there may be {', '.join(map(repr, checks))}")
            checks[key](where, value, own[number])


def number(where: str, value: Any, _: Tensor | None = None) -> None:
    """Check a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where} must be a finite number >= 0, got {_short(value)}")


def whole(where: str, value: Any, _: Tensor | None = None) -> None:
    """Check a whole number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{where} must be a whole number >= 0, got {_short(value)}")


def wholes(where: str, value: Any, _: Tensor | None = None) -> None:
    """Check a list of whole numbers >= 0."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} must be a list of whole numbers, got {_short(value)}")
    for index, each in enumerate(value):
        whole(f"{where}[{index}]", each)


def numbers(where: str, value: Any, _: Tensor | None = None) -> None:
    """Check a list of finite numbers >= 0."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} must be a list of numbers, got {_short(value)}")
    for index, each in enumerate(value):
        number(f"{where}[{index}]", each)


def truth(where: str, value: Any, _: Tensor | None = None) -> None:
    """Check True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{where} must be True or False, got {_short(value)}")


def like_parameter(where: str, value: Any, p: Tensor) -> None:
    """Check a finite tensor of the parameter's shape."""
    array(where, value, tuple(p.shape))


def array(
    where: str, value: Any, shape: Sequence[int | None] | None = None, integer: bool = False, finite: bool = True
) -> None:
    """Check a tensor of numbers.

    Args:
        where: named in errors.
        value: what there is.
        shape: expected, None for any length; None altogether for any shape.
        integer: of whole numbers.
        finite: whether infinity is wrong; not a number always is.

    Raises:
        ValueError: it is none, or of another shape or kind, or not finite.
    """
    if not is_tensor(value) or integer == (value.is_floating_point() or value.is_complex()):
        kind = "whole numbers" if integer else "floating-point numbers"
        raise ValueError(f"{where} must be a tensor of {kind}, got {_short(value)}")
    found = tuple(value.shape)
    if shape is not None and (
        len(found) != len(shape) or any(e is not None and e != f for e, f in zip(shape, found, strict=True))
    ):
        expected = ", ".join("any" if e is None else str(e) for e in shape)
        raise ValueError(f"{where} must have shape [{expected}], got {list(found)}")
    if bool(value.isnan().any()) or (finite and not bool(value.isfinite().all())):
        raise ValueError(f"{where} holds values that are not finite")


def fields(where: str, value: Any, needed: Sequence[str], others: Sequence[str] = ()) -> None:
    """Check the keys of a dict."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a dict with {', '.join(map(repr, needed))}, got {_short(value)}")
    for key in needed:
        if key not in value:
            raise ValueError(f"{where} has no {key!r}")
    for key in value:
        if key not in needed and key not in others:
            raise ValueError(f"{where}[{key!r}] is unknown: there may be {', '.join(map(repr, (*needed, *others)))}")


def restored(state: Mapping[Any, Any], own: Mapping[Any, Tensor]) -> dict[Tensor, Any]:
    """Copies of the entries with their dtypes, by parameter: torch's loading casts all to the parameters' own."""

    def copied(entry: Any, device: torch.device) -> Any:
        return tree_map(lambda x: x.to(device, copy=True) if is_tensor(x) else x, entry)

    return {own[number]: copied(entry, own[number].device) for number, entry in state.items()}


def _short(value: Any) -> str:
    if is_tensor(value):
        return f"a tensor of shape {list(value.shape)} and {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:57]}..."
