"""Whose a preconditioner's estimate is, and whether one that was saved is whole."""

import dataclasses
import warnings
from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor

from ...curvature import Kronecker, Nystrom, Preconditioner
from .saved import array, fields, whole, wholes


def owner_of(method: Any) -> str | None:
    """A preconditioner in words, with its settings: an estimate serves the one that made it. None for a function."""
    if not isinstance(method, Preconditioner):
        return None
    kind = type(method)
    if dataclasses.is_dataclass(method):
        settings = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    else:
        settings = {"every": method.every} | vars(method)
    plain = [f"{name}={x!r}" for name, x in settings.items() if isinstance(x, (int, float, str, tuple, type(None)))]
    own = kind.__module__.startswith("latephase.")
    return f"{kind.__qualname__ if own else f'{kind.__module__}.{kind.__qualname__}'}({', '.join(plain)})"


def check_estimate(where: str, kept: Any, method: Any) -> bool:
    """Check a saved estimate against the preconditioner that is to use it.

    Args:
        where: named in errors.
        kept: what was saved.
        method: the optimizer's preconditioner.

    Returns:
        Whether it may be used. One that another preconditioner made is not, which a warning says.

    Raises:
        ValueError: it is damaged.
    """
    fields(where, kept, ("age", "blocks", "estimate"), ("method",))
    whole(f"{where}['age']", kept["age"])
    wholes(f"{where}['blocks']", kept["blocks"])
    estimate, own = kept["estimate"], owner_of(method)
    if not isinstance(estimate, Mapping):
        raise ValueError(f"{where}['estimate'] must be a dict of tensors, got {type(estimate).__name__}")
    made_by = kept.get("method")
    if not isinstance(made_by, (str, type(None))):
        raise ValueError(f"{where}['method'] must be a name, got {made_by!r}")
    guess = "an estimate that does not say whose it is"
    if own is None or (made_by is not None and made_by != own) or (made_by is None and _foreign(estimate, method)):
        there = "this optimizer has no preconditioner that estimates" if own is None else f"this optimizer has {own}"
        _warn(f"state_dict holds {made_by or guess}, and {there}: the estimate is dropped, and made anew if needed")
        return False
    if made_by is None and set(estimate) == {"diagonal"} and kept["age"] < method.every:
        _warn(f"state_dict holds {guess}, having been saved by an earlier release; it is taken for one of {own}")
    for name, tensor in estimate.items():
        whole_numbers = name == "layers" and isinstance(method, Kronecker)
        array(f"{where}['estimate'][{name!r}]", tensor, integer=whole_numbers, finite=False)
    _check_shapes(f"{where}['estimate']", estimate, kept["blocks"], method)
    return True


def _warn(said: str) -> None:
    warnings.warn(said, UserWarning, stacklevel=6)


def _foreign(estimate: Mapping[str, Tensor], method: Preconditioner) -> bool:
    """Whether an estimate has the form of another method's."""
    forms = [_form_of(estimate), _form_of(method.entries)]
    return None not in forms and forms[0] != forms[1]


def _form_of(names: Container[str]) -> str | None:
    return next((name for name in ("vectors", "layers", "diagonal") if name in names), None)


def _check_shapes(where: str, estimate: Mapping[str, Tensor], blocks: list[int], method: Preconditioner) -> None:
    size, needed = sum(blocks), method.entries
    if not needed:
        return
    layers = [name for name in estimate if name.partition(".")[0].isdigit()] if isinstance(method, Kronecker) else []
    fields(where, estimate, needed, layers)
    if "diagonal" in needed:
        array(f"{where}['diagonal']", estimate["diagonal"], [size], finite=False)
    if isinstance(method, Nystrom):
        rank = len(estimate["vectors"]) if estimate["vectors"].dim() == 2 else None
        array(f"{where}['vectors']", estimate["vectors"], [None, size], finite=False)
        array(f"{where}['values']", estimate["values"], [len(blocks), rank], finite=False)
        array(f"{where}['rest']", estimate["rest"], [len(blocks)], finite=False)
        array(f"{where}['decay']", estimate["decay"], [1 if estimate["decay"].numel() == 1 else size], finite=False)
    if isinstance(method, Kronecker):
        _check_layers(where, estimate)


def _check_layers(where: str, estimate: Mapping[str, Tensor]) -> None:
    for name, sizes in layout(where, estimate["layers"]).items():
        values, vectors = f"{name}.values", f"{name}.vectors"
        fields(where, estimate, (values, vectors), tuple(estimate))
        size = size_of(estimate[values], sizes)
        array(f"{where}[{values!r}]", estimate[values], [size], finite=False)
        array(f"{where}[{vectors!r}]", estimate[vectors], [size, size], finite=False)


def layout(where: str, layers: Tensor) -> dict[str, tuple[int, ...]]:
    """The Kronecker factors that "layers" [layers, 4] tells of, and the sizes that each may have."""
    array(f"{where}['layers']", layers, [None, 4], integer=True)
    found: dict[str, tuple[int, ...]] = {}
    for index, (weight, _, inputs, outputs) in enumerate(layers.tolist()):
        if weight >= 0:
            found[f"{index}.inputs"] = (inputs, inputs + 1)  # with a column for the bias
        found[f"{index}.slopes"] = (outputs,)
    return found


def size_of(factor: Tensor, sizes: tuple[int, ...]) -> int:
    """Which of the sizes a factor has; the first where it has none."""
    return len(factor) if factor.dim() and len(factor) in sizes else sizes[0]
