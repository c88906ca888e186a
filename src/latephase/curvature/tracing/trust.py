"""Whose code reads its arguments only, and which objects never change."""

import datetime
import decimal
import enum
import fractions
import functools
import logging
import operator
import pathlib
import re
import sys
import types
from collections import OrderedDict, defaultdict
from typing import Any, Generic

import numpy as np
import torch

_TRUSTED = frozenset(
    [
        "torch",
        "builtins",
        "math",
        "cmath",
        "operator",
        "_operator",
        "functools",
        "_functools",
        "itertools",
        "collections",
        "_collections",
        "_collections_abc",
        "_abc",
        "abc",
        "typing",
        "contextlib",
        "dataclasses",
        "enum",
        "types",
        "copy",
        "warnings",
        "logging",
        "numbers",
        "numpy",
        "string",
        "argparse",
    ]
)
"""Packages whose own functions compute from their arguments and from torch's settings, which a trace's key holds."""

WATCHED = frozenset(["peft", "transformers"])
"""Packages whose own functions compute from their arguments, from what hangs at the model, and from what their modules
hold, all of which is in the key: see `watching`."""

_OF_PASSES = frozenset(
    f"{__name__.split('.')[0]}.objective.{name}"
    for name in ("copies", "data", "program", "residuals", "stand_ins", "substitutes", "unwritten", "weights")
)
"""Our own modules that call the user's code in each pass: what they keep decides how, and not what it gives."""

_FIXED = (
    enum.Enum,
    slice,
    range,
    type(Ellipsis),
    type(NotImplemented),
    re.Pattern,
    decimal.Decimal,
    fractions.Fraction,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.tzinfo,
    pathlib.PurePath,
    np.generic,
    np.dtype,
    np.ufunc,
    types.CodeType,
    operator.itemgetter,
    logging.Logger,
    torch.finfo,
    torch.iinfo,
    torch.layout,
    torch.memory_format,
)
"""Values that never change, and are equal where they are the same."""

_ACCESS = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
    types.BuiltinFunctionType,
    types.GenericAlias,
)
"""How C hands out what an object holds."""

_CONTAINERS = (
    *(object, dict, OrderedDict, defaultdict, list, tuple, set, frozenset, type, int, float, complex, str, bytes),
    *(property, staticmethod, classmethod, types.SimpleNamespace, Generic),
)
"""Classes in C whose objects show all that they hold."""


def root_of(module: Any) -> str:
    """The package of a module, by its name; none where a class of C's says something else than a name."""
    return module.split(".")[0] if isinstance(module, str) else ""


def trusted_package(module: str | None) -> bool:
    """Whether functions of this module read their arguments only, or what is watched."""
    root = root_of(module)
    return root in _TRUSTED or root in WATCHED or module in _OF_PASSES


def is_watched(value: Any) -> bool:
    """Whether this is a watched package's: a module, a class, a function, or an object of a class derived from its."""
    if isinstance(value, types.ModuleType):
        return root_of(value.__name__) in WATCHED
    if isinstance(value, types.FunctionType):
        return root_of(value.__globals__.get("__name__")) in WATCHED
    return bool(watched_classes(value if isinstance(value, type) else type(value)))


@functools.lru_cache(maxsize=4096)
def watched_classes(kind: type) -> tuple[type, ...]:
    """Those that a class is derived from, itself included, which are of watched packages."""
    return tuple(owner for owner in kind.__mro__ if root_of(owner.__module__) in WATCHED)


def is_trusted(value: Any) -> bool:
    """Whether this is code of a package whose functions read their arguments only.

    A function is known by where its globals are, since decorators make functions that bear the name of others.
    """
    if isinstance(value, types.FunctionType):
        return trusted_package(value.__globals__.get("__name__"))
    if isinstance(value, type):
        return trusted_package(value.__module__)
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        home = owner.__name__ if isinstance(owner, types.ModuleType) else getattr(owner, "__module__", None)
        return trusted_package(value.__module__ or home or type(owner).__module__)
    return root_of(type(value).__module__) in ("logging", "typing")


def is_fixed(value: Any) -> bool:
    """Whether this is a value that never changes."""
    return isinstance(value, _FIXED)


def shows_all(value: Any) -> bool:
    """Whether nothing hides in an object beside what Python shows of it, so that a description is complete.

    What C keeps in an object (an iterator, a context variable, a number of ctypes', a cache, a scripted module) is not
    shown.
    """
    if isinstance(value, type) and not _are_open(value):
        return False
    return _are_open(type(value))


@functools.lru_cache(maxsize=1024)
def _are_open(kind: type) -> bool:
    return kind in _SHOWN or all(_is_open(base) for base in kind.__mro__)


def _is_open(kind: type) -> bool:
    root = root_of(kind.__module__)
    if kind in (torch.jit.ScriptModule, torch.jit.ScriptFunction, torch.ScriptObject, torch.Generator):
        return False
    if kind in _CONTAINERS or root == "torch" or (root == "builtins" and issubclass(kind, BaseException)):
        return True
    if root.startswith("_") and root in sys.stdlib_module_names and root not in ("_collections_abc", "_abc"):
        return False
    return kind is not _CACHE and bool(kind.__flags__ & _MADE_AT_RUN_TIME) and not kind.__flags__ & _IMMUTABLE


_MADE_AT_RUN_TIME, _IMMUTABLE = 1 << 9, 1 << 8
"""Py_TPFLAGS_HEAPTYPE and Py_TPFLAGS_IMMUTABLETYPE: classes that are written in Python, and few in C, are the one and
not the other."""
_CACHE = type(functools.lru_cache(int))
_SHOWN = (*_ACCESS, types.FunctionType, types.MethodType, types.ModuleType)
