"""What the classes of objects hold and may run: their methods, properties, and other attributes."""

import functools
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from .reach import names_of
from .trust import _ACCESS, is_trusted, trusted_package

_NEVER_RUN = frozenset(
    [
        "__repr__",
        "__str__",
        "__eq__",
        "__hash__",
        "__reduce__",
        "__reduce_ex__",
        "__getstate__",
        "__setstate__",
        "__copy__",
        "__deepcopy__",
        "__init_subclass__",
        "__del__",
        "__setattr__",
        "__delattr__",
        "__class_getitem__",
        "__replace__",
        "__annotate__",
        "__annotate_func__",
        "__dir__",
    ]
)
_MADE = frozenset(("__init__", "__new__", "__post_init__"))
"""Run where an object is made: of interest for a class that a function names, not for an object that is there."""


@functools.lru_cache(maxsize=1024)
def owners_of(kind: type) -> tuple[type, ...]:
    """The class and its bases, those of trusted packages left out."""
    return tuple(owner for owner in kind.__mro__ if not trusted_package(owner.__module__))


def of_class(kind: type, made: bool = False, names: frozenset[str] | None = None) -> Iterator[tuple[str, Any]]:
    """The methods of a class, of its own bases and of its metaclass, those of trusted packages left out.

    Args:
        kind: the class.
        made: the object is made where it is used, so that what makes it counts.
        names: only methods of these names, and special ones. Default: all.
    """
    owners = owners_of(kind)
    for owner in owners:
        for name, value in vars(owner).items():
            special = name.startswith("__")
            if name in _NEVER_RUN or (name in _MADE and not made):
                continue
            if names is not None and not special and name not in names:
                continue
            function = _function_of(value)
            if function is not None and not is_trusted(function):
                yield f"{owner.__qualname__}.{name}", function
    yield from _replaced_in(kind)
    if type(kind) is not type and not trusted_package(type(kind).__module__):
        yield from of_class(type(kind))


def _replaced_in(kind: type) -> Iterator[tuple[str, Any]]:
    """Methods of torch's layers that are somebody else's."""
    for owner in _layers_of(kind):
        for name, value in vars(owner).items():
            if isinstance(value, types.FunctionType) and not is_trusted(value):
                yield f"{owner.__qualname__}.{name}", value


@functools.lru_cache(maxsize=1024)
def _layers_of(kind: type) -> tuple[type, ...]:
    """Those of torch's layers that a class is, or is made of."""
    owners = kind.__mro__ if issubclass(kind, nn.Module) else ()
    return tuple(owner for owner in owners if owner.__module__.startswith("torch.nn.") and owner is not nn.Module)


def class_attributes(kind: type, names: frozenset[str] | None = None) -> dict[str, Any]:
    """What a class and its bases hold that is no method, torch's and Python's left out.

    Args:
        kind: the class.
        names: of what is no plain value, only attributes of these names. Default: all.
    """
    return {
        f"class {name}": value
        for owner in owners_of(kind)
        for name, value in vars(owner).items()
        if not name.startswith(("__", "_abc_")) and _counts(name, value, names)
    }


def _counts(name: str, value: Any, names: frozenset[str] | None) -> bool:
    if isinstance(value, (bool, int, float, str)):
        return True
    if isinstance(value, _ACCESS) or type(value).__name__ == "_tuplegetter" or _function_of(value) is not None:
        return False
    return names is None or name in names


def _function_of(value: Any) -> types.FunctionType | None:
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, functools.cached_property):
        value = value.func
    return value if isinstance(value, types.FunctionType) else None


def names_reached(kinds: set[type]) -> frozenset[str] | None:
    """Names of what a forward pass may ask of its modules; None where it asks by names that are not in the code."""
    names: set[str] = {"forward"}
    while True:
        found: set[str] = set()
        for kind in kinds:
            for _, function in of_class(kind, names=frozenset(names)):
                inner = names_of(function.__code__)
                if inner.by_name:
                    return None
                found |= inner.attributes
        if found <= names:
            return frozenset(names)
        names |= found
