"""What a trace is valid for: everything outside its inputs that the traced computation may have read."""

import functools
import random
import types
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..chunks import Chunk
from ..objective import Objective
from ..parameters import ParameterSpace
from .recorder import CannotTrace

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type)
_OWN = ("_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs")
"""Attributes of a module that are read otherwise, or (those of recurrent layers) are its parameters once more."""


def signature(
    objective: Objective, chunk: Chunk, space: ParameterSpace, hessian: bool, dtype: torch.dtype | None
) -> Hashable:
    """A key that is equal for two chunks of two objectives exactly if one trace serves both.

    It holds which tensors are the same ones, and shapes, strides, dtypes and devices of data, parameters and buffers;
    the structure of the model with the train mode and every plain attribute of each submodule; the loss and the forward
    function by their code, and what they captured by value; the trainable set; and torch's settings that change what
    an operator does. What it cannot see (a global that a module reads, say) is left to the comparison with the eager
    loss, see `traces`.

    Raises:
        CannotTrace: random numbers may be drawn outside torch.
    """
    reader = _Reader(objective.model)
    leaves, structure = tree_flatten((chunk.inputs, chunk.targets))
    model = [
        (name, type(module), reader.describe(_own_attributes(module)))
        for name, module in objective.model.named_modules()
    ]
    places = [
        (name, key, _layout(tensor), tensor.requires_grad, reader.number(tensor))
        for name, module in objective.model.named_modules(remove_duplicate=False)
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    ]
    return (
        (hessian, dtype, str(structure)),
        tuple(reader.describe(leaf) for leaf in leaves),
        tuple(space.names),
        tuple(model),
        tuple(places),
        reader.describe(objective.program.loss),
        reader.describe(objective.program.forward),
        _torch_settings(space.device.type),
    )


def held_tensors(objective: Objective) -> dict[str, Tensor]:
    """Tensors outside parameters, buffers and data that the computation may read, by where they hang.

    They are attributes of submodules, and what loss and forward function hold or captured.
    """
    found: dict[str, Tensor] = {}
    reader = _Reader(objective.model)

    def keep(path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[path] = value

    for name, module in objective.model.named_modules():
        for path, value in reader.walk(_own_attributes(module), f"model.{name}"):
            keep(path, value)
    for path, value in (
        *reader.walk(objective.program.loss, "loss"),
        *reader.walk(objective.program.forward, "forward"),
    ):
        keep(path, value)
    return found


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """What hangs at a module beside parameters, buffers and submodules: its own, and plain attributes of its class."""
    of_class = {
        f"class {key}": value
        for kind in type(module).__mro__
        if kind.__module__.split(".")[0] != "torch"
        for key, value in vars(kind).items()
        if isinstance(value, (bool, int, float, str, Tensor, dict, list)) and not key.startswith("__")
    }
    return of_class | {key: value for key, value in vars(module).items() if key not in _OWN and _holds(value)}


def _holds(value: Any) -> bool:
    """Whether there is something in it: a module has a dozen empty tables of hooks."""
    return type(value) not in (dict, OrderedDict) or bool(value)


def _layout(tensor: Tensor) -> Hashable:
    strides = tensor.stride() if tensor.layout == torch.strided else None
    return tuple(tensor.shape), strides, tensor.dtype, tensor.device, tensor.layout


def _torch_settings(device: str) -> Hashable:
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return (
        torch.get_default_dtype(),
        autocast,
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.enabled,
        torch.backends.mkldnn.enabled,
    )


class _Identity:
    """Equal to itself alone: an object that cannot be described, known by weak reference where it has one."""

    def __init__(self, value: Any):
        self.kind, self.id = type(value), id(value)
        try:
            self.reference = weakref.ref(value)
        except TypeError:
            self.reference = functools.partial(_same, value)

    def __hash__(self) -> int:
        return hash((self.kind, self.id))

    def __eq__(self, other: object) -> bool:
        alive = self.reference()
        return isinstance(other, _Identity) and alive is not None and alive is other.reference()


def _same(value: Any) -> Any:
    return value


class _Reader:
    """Describes values by what they hold; an object met again is described by its number."""

    def __init__(self, model: nn.Module):
        self.numbers: dict[int, int] = {id(model): 0}
        self.alive: list[Any] = []

    def number(self, value: Any) -> int:
        """The how manieth object this is."""
        self.alive.append(value)
        return self.numbers.setdefault(id(value), len(self.numbers))

    def describe(self, value: Any) -> Hashable:
        """A hashable description: equal for values that compute the same."""
        if isinstance(value, weakref.ReferenceType):  # recurrent layers make new ones to the same weights
            value = value()
        if isinstance(value, _PLAIN):
            return type(value), value
        if isinstance(value, Tensor):
            return "tensor", _layout(value), self.number(value)
        if id(value) in self.numbers:
            return "again", self.numbers[id(value)]
        self.number(value)
        if isinstance(value, (np.random.Generator, np.random.RandomState, random.Random)):
            raise CannotTrace(
                f"a {type(value).__name__} hangs at the model or the loss; draw random numbers with torch"
            )
        if isinstance(value, np.ndarray) and value.dtype != object:
            return "array", value.shape, str(value.dtype), zlib.crc32(value.tobytes())
        parts = list(_parts(value))
        if not parts and not _is_container(value):
            return _Identity(value)
        label = value.__code__ if isinstance(value, types.FunctionType) else type(value)
        return label, tuple((name, self.describe(part)) for name, part in parts)

    def walk(self, value: Any, path: str) -> Iterator[tuple[str, Any]]:
        """Every value inside, with its path; each object once."""
        if isinstance(value, (*_PLAIN, weakref.ReferenceType)) or id(value) in self.numbers:
            return
        self.number(value)
        yield path, value
        if not isinstance(value, Tensor):
            for name, part in _parts(value):
                yield from self.walk(part, f"{path}.{name}")


def _is_container(value: Any) -> bool:
    kinds = (Mapping, tuple, list, set, frozenset, nn.Module, types.FunctionType)
    return isinstance(value, kinds) or hasattr(value, "__dict__")


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of, by name."""
    if isinstance(value, Mapping):
        yield from ((repr(key), part) for key, part in value.items())
    elif isinstance(value, (tuple, list)):
        yield from ((str(index), part) for index, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((str(index), part) for index, part in enumerate(sorted(value, key=repr)))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from (("function", value.__func__), ("self", value.__self__))
    elif isinstance(value, types.FunctionType):
        yield from _function_parts(value)
    if not isinstance(value, types.ModuleType):
        yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes of an object, slots included, and the plain ones of a module's class."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _function_parts(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Captured variables, defaults, and the values and helpers among the globals that a function names."""
    yield "defaults", function.__defaults__
    yield "keyword defaults", function.__kwdefaults__
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            yield name, None
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        of_torch = isinstance(value, types.FunctionType) and value.__module__.split(".")[0] == "torch"
        if isinstance(value, (bool, int, float, str, Tensor, dict, list, tuple, types.FunctionType)) and not of_torch:
            yield f"global {name}", value
