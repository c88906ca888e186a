"""What a trace is valid for: everything outside its inputs that the traced computation may have read."""

import functools
import random
import types
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..chunks import Chunk
from ..objective import Objective
from ..parameters import ParameterSpace
from .reach import Opaque, is_trusted, methods_reached, of_class, read_by
from .recorder import CannotTrace

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type)
MOST_OBJECTS = 50_000
"""A description of more is no key: somebody's whole program hangs at the model."""
_OWN = ("_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs", "_compiled_call_impl")
"""Attributes of a module that are read otherwise, (those of recurrent layers) are its parameters once more, or do not
count since passes run uncompiled."""


def signature(
    objective: Objective, chunk: Chunk, space: ParameterSpace, hessian: bool, dtype: torch.dtype | None
) -> tuple[Hashable, str | None]:
    """A key that is equal for two chunks of two objectives exactly if one trace serves both, and what it cannot see.

    It holds which tensors are the same ones, and shapes, strides, dtypes and devices of data, parameters and buffers;
    the structure of the model with the train mode and every plain attribute of each submodule; the code of its methods,
    of the loss and of the forward function, and what they captured or read from globals by value, at any depth that
    Python shows (`reach`); the trainable set; and torch's settings that change what an operator does. What it cannot
    see (a clock, a file, a function in C) is named beside it and left to the comparison with the eager loss, see
    `traces`.

    Raises:
        CannotTrace: random numbers may be drawn outside torch, or there is too much to describe.
    """
    reader = _Reader(objective.model)
    try:
        return _key(reader, objective, chunk, space, hessian, dtype), reader.opaque
    except RecursionError as error:
        raise CannotTrace("what the model or the loss reads is nested too deeply to be described") from error


def _key(
    reader: "_Reader",
    objective: Objective,
    chunk: Chunk,
    space: ParameterSpace,
    hessian: bool,
    dtype: torch.dtype | None,
) -> Hashable:
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
        tuple((path, reader.describe(function)) for path, function in _methods(objective.model)),
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
    for path, function in _methods(objective.model):
        for inner, value in reader.walk(function, path):
            keep(inner, value)
    for path, value in (
        *reader.walk(objective.program.loss, "loss"),
        *reader.walk(objective.program.forward, "forward"),
    ):
        keep(path, value)
    return found


def _methods(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The methods that a forward pass may run, of the classes that are not torch's."""
    for kind, names in methods_reached({type(module) for module in model.modules()}).items():
        yield from of_class(kind, names=names)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """What hangs at a module beside parameters, buffers and submodules: its own, and plain attributes of its class."""
    if isinstance(vars(module)["_modules"].get("_orig_mod"), nn.Module):  # what torch.compile put around another
        return {}
    return _class_attributes(type(module)) | {
        key: value for key, value in vars(module).items() if key not in _OWN and _holds(value)
    }


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
        self.opaque: str | None = None

    def number(self, value: Any) -> int:
        """The place of this object in the order in which they were met."""
        self.alive.append(value)
        if len(self.alive) > MOST_OBJECTS:
            raise CannotTrace(f"the model or the loss reads more than {MOST_OBJECTS} objects")
        return self.numbers.setdefault(id(value), len(self.numbers))

    def describe(self, value: Any) -> Hashable:
        """A hashable description: equal for values that compute the same."""
        if isinstance(value, weakref.ReferenceType):  # recurrent layers make new ones to the same weights
            value = value()
        if isinstance(value, Opaque):
            self.opaque = value.name
            return "opaque", value.name
        if isinstance(value, _PLAIN) and not _is_own_class(value):
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
        if isinstance(value, types.BuiltinFunctionType) and not is_trusted(value):
            self.opaque = value.__qualname__
        parts = list(_parts(value))
        if not parts and not _is_container(value):
            return _Identity(value)
        label = value.__code__ if isinstance(value, types.FunctionType) else type(value)
        return label, tuple((name, self.describe(part)) for name, part in parts)

    def walk(self, value: Any, path: str) -> Iterator[tuple[str, Any]]:
        """Every value inside, with its path; each object once."""
        plain = isinstance(value, (*_PLAIN, weakref.ReferenceType, Opaque)) and not _is_own_class(value)
        if plain or id(value) in self.numbers:
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
        yield from read_by(value)
    elif isinstance(value, type):
        yield from ((name, part) for name, part in _class_attributes(value).items())
        yield from of_class(value, made=True)
        return
    if not isinstance(value, (types.ModuleType, types.FunctionType)):
        if not isinstance(value, nn.Module):
            yield from _class_attributes(type(value)).items()
            yield from of_class(type(value))
        yield from _attributes(value)
    elif isinstance(value, types.FunctionType):
        yield from _attributes(value)


def _is_own_class(value: Any) -> bool:
    """Whether this is a class that is not torch's or Python's."""
    return isinstance(value, type) and not is_trusted(value)


def _class_attributes(kind: type) -> dict[str, Any]:
    """Plain attributes of a class and of its bases, torch's and Python's left out."""
    return {
        f"class {key}": value
        for owner in kind.__mro__
        if not is_trusted(owner)
        for key, value in vars(owner).items()
        if isinstance(value, (bool, int, float, str, Tensor, dict, list, tuple)) and not key.startswith("__")
    }


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes of an object, slots included, and the plain ones of a module's class."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)
