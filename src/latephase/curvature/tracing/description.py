"""Objects described by what they hold, so that descriptions are equal where the objects compute the same."""

import array
import functools
import pathlib
import random
import types
import weakref
import zlib
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .class_reads import class_attributes, of_class
from .operations import CannotTrace
from .reach import Exactly, Opaque, Watched, names_of, read_by
from .trust import is_fixed, is_trusted, is_watched, shows_all, trusted_package, watched_classes
from .watching import watch

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type)
_PLAINEST = frozenset([type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device])
_SIMPLE = frozenset([dict, OrderedDict, list, tuple, set, frozenset])
_NO_OWNER = (type(None), types.ModuleType, type)
_RAW = (bytearray, array.array, memoryview)
MARKS = (Exactly, Opaque, Watched)
MOST_OBJECTS = 50_000
"""A description of more is no key: somebody's whole program hangs at the model."""


class Reader:
    """Describes values by what they hold; an object met again is described by its number.

    Attributes:
        opaque: something of what was described that may change without the description, by name.
        watched: whether code of a package that is watched was met.
    """

    def __init__(self, model: nn.Module):
        self.numbers: dict[int, int] = {id(model): 0}
        self.alive: list[Any] = []
        self.opaque: str | None = None
        self.watched = False
        self._path: str | None = None
        self._of_files = False

    @property
    def unseen(self) -> str | None:
        """What may change without the description; a path does where the code looks at the disk."""
        return self.opaque or (self._path if self._of_files else None)

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
        kind = type(value)
        if kind in _PLAINEST:
            return kind, value
        if kind not in _SIMPLE:
            if isinstance(value, Tensor):
                return "tensor", layout_of(value), self.number(value)
            if isinstance(value, Opaque):
                self.opaque = value.name
                return "opaque", value.name
            if isinstance(value, Exactly):
                return value
            if isinstance(value, Watched):
                self.watched = True
                return "watched"
            if is_plain(value):
                self._meet(value)
                self._path = str(value) if isinstance(value, pathlib.Path) else self._path
                return kind, value
        if id(value) in self.numbers:
            return "again", self.numbers[id(value)]
        self.number(value)
        if kind in _SIMPLE:
            return kind, tuple([(name, self.describe(part)) for name, part in _items(value)])
        if isinstance(value, (np.random.Generator, np.random.RandomState, random.Random)):
            raise CannotTrace(f"a {kind.__name__} hangs at the model or the loss; draw random numbers with torch")
        if isinstance(value, np.ndarray) and value.dtype != object:
            return "array", value.shape, str(value.dtype), zlib.crc32(value.tobytes())
        return (kind, bytes(value)) if isinstance(value, _RAW) else self._of_parts(value)

    def kind_of(self, value: Any) -> type:
        """The class of an object whose parts are described elsewhere."""
        self._meet(value)
        return type(value)

    def _meet(self, value: Any) -> None:
        """Note what is of a package that is watched."""
        if is_watched(value):
            self.watched = True
            for kind in watched_classes(value if isinstance(value, type) else type(value)):
                watch.know(kind)

    def _of_parts(self, value: Any) -> Hashable:
        self._meet(value)
        known = not isinstance(value, types.BuiltinFunctionType) or is_trusted(value)
        if not known or not (shows_all(value) or _is_known(value)):
            self.opaque = str(getattr(value, "__qualname__", type(value).__name__))
        elif isinstance(value, types.ModuleType) and not trusted_package(value.__name__):
            self.opaque = value.__name__  # whoever holds it may ask for anything of it
        if isinstance(value, types.FunctionType) and names_of(value.__code__).of_files:
            self._of_files = True
        parts = list(parts_of(value))
        if not parts and not _is_container(value):
            return _Identity(value)
        return _label_of(value), tuple((name, self.describe(part)) for name, part in parts)

    def walk(self, value: Any, path: str) -> Iterator[tuple[str, Any]]:
        """Every value inside, with its path; each object once."""
        if is_plain(value) or isinstance(value, (weakref.ReferenceType, *MARKS)) or id(value) in self.numbers:
            return
        self.number(value)
        yield path, value
        if not isinstance(value, Tensor):
            for name, part in parts_of(value):
                yield from self.walk(part, f"{path}.{name}")


def _label_of(value: Any) -> Hashable:
    """What tells objects of the same parts apart."""
    if isinstance(value, types.FunctionType):
        return value.__code__
    if isinstance(value, types.BuiltinFunctionType):
        return value.__module__, value.__qualname__
    return value if isinstance(value, type) else type(value)


def is_plain(value: Any) -> bool:
    """Whether this is a value that stands for itself, and no class that is not torch's or Python's."""
    return (isinstance(value, _PLAIN) or is_fixed(value)) and not (isinstance(value, type) and not is_trusted(value))


def layout_of(tensor: Tensor) -> Hashable:
    """What a trace depends on of a tensor, its values left out."""
    strides = tensor.stride() if tensor.layout == torch.strided else None
    return tuple(tensor.shape), strides, tensor.dtype, tensor.device, tensor.layout


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


def _is_known(value: Any) -> bool:
    """Whether this is a container in C, of which `parts_of` gives all that it holds."""
    return type(value) in (deque, np.ndarray, functools.partial, types.MappingProxyType, weakref.WeakMethod)


def _is_container(value: Any) -> bool:
    kinds = (Mapping, tuple, list, deque, set, frozenset, nn.Module, types.FunctionType)
    return isinstance(value, kinds) or hasattr(value, "__dict__")


def _items(value: Any) -> list[tuple[str, Any]]:
    """What a container holds."""
    if isinstance(value, (tuple, list, deque)):
        return [(str(index), part) for index, part in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [(str(index), part) for index, part in enumerate(sorted(value, key=repr))]
    return [(repr(key), part) for key, part in value.items()]


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of, by name."""
    original = getattr(value, "_torchdynamo_orig_callable", None) if isinstance(value, types.FunctionType) else None
    if original is not None:  # what torch.compile wrapped; our passes run it as it was written
        yield "compiled", original
        return
    if isinstance(value, (tuple, list, deque, set, frozenset, Mapping)):
        yield from _items(value)
    elif isinstance(value, np.ndarray):
        yield from ((str(index), part) for index, part in enumerate(value.ravel().tolist()))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from (("function", value.__func__), ("self", value.__self__))
    elif isinstance(value, types.FunctionType):
        yield from read_by(value)
    elif isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, _NO_OWNER):
        yield "self", value.__self__
    elif isinstance(value, type):
        yield from class_attributes(value).items()
        yield from of_class(value, made=True)
        return
    if not isinstance(value, (types.ModuleType, types.FunctionType)):
        yield from class_attributes(type(value)).items()
        yield from of_class(type(value))
    if not isinstance(value, types.ModuleType):
        yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes of an object, slots included."""
    yield from getattr(value, "__dict__", {}).items()
    for name in _slots_of(type(value)):
        if hasattr(value, name):
            yield name, getattr(value, name)


@functools.lru_cache(maxsize=1024)
def _slots_of(kind: type) -> tuple[str, ...]:
    """The names of what objects of a class hold in slots."""
    found: list[str] = []
    for owner in kind.__mro__:
        slots = vars(owner).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            if name not in ("__dict__", "__weakref__"):
                found.append(f"_{owner.__name__.lstrip('_')}{name}" if private else name)
    return tuple(found)
