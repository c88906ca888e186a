"""Functions of a tensor by name, each of which reads a number in another way."""

import array
import collections
import contextvars
import ctypes
import functools
import itertools
import json
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reach_objects import (
    Cached,
    Child,
    Computed,
    Described,
    Made,
    Nested,
    Operators,
    Pair,
    Scale,
    Slots,
    Teacher,
    WithMeta,
    disguised,
    dispatched,
    keyword,
    outer,
    remembered,
    scaled,
    wrapped,
)
from torch import Tensor

NUMBER: Any = 1.0
FLAG = False
SLOTS, COMPUTED, OPERATORS, CHILD, CACHED, TEACHER = Slots(), Computed(), Operators(), Child(), Cached(), Teacher()
PAIRS = [Pair(1.0)]
SIMPLE = types.SimpleNamespace(inner=types.SimpleNamespace(beta=1.0))
QUEUE, ARRAY, BYTES, USER = (
    collections.deque([1.0]),
    array.array("d", [1.0]),
    bytearray([1]),
    collections.UserDict(b=1.0),
)
VECTOR, OBJECTS = np.ones(2), np.array([types.SimpleNamespace(beta=1.0)], dtype=object)
VARIABLE: contextvars.ContextVar[float] = contextvars.ContextVar("variable", default=1.0)
LOCAL = threading.local()
DOUBLE = ctypes.c_double(1.0)
NESTED = outer()
TABLE = {"f": lambda h: h * NUMBER}
LAZY = types.ModuleType("lazy_of_a_test")
LAZY.__getattr__ = lambda name: NUMBER  # type: ignore[method-assign]
PLAIN = types.ModuleType("plain_of_a_test")
sys.modules["plain_of_a_test"] = PLAIN
FILE = Path("/nowhere")
ITERATOR = itertools.repeat(1.0)


def from_import(h: Tensor) -> Tensor:
    from plain_of_a_test import beta

    return h * beta


def from_open(h: Tensor) -> Tensor:
    with open(FILE) as file:
        return h * json.loads(file.read())


def in_with(h: Tensor) -> Tensor:
    with OPERATORS as factor, scaled() as other:
        return h * factor * other


READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "object of a class": lambda h: h * Nested.settings.beta,
    "object in a table of a class": lambda h: h * Nested.pair["inner"].beta,
    "attribute that was None": lambda h: h if Nested.nothing is None else h * Nested.nothing,
    "slots": lambda h: h * SLOTS.beta,
    "__getattr__": lambda h: h * COMPUTED.beta,
    "metaclass": lambda h: h * WithMeta.beta,
    "descriptor": lambda h: h * Described().beta,
    "__call__": lambda h: OPERATORS(h),
    "__getitem__": lambda h: h * OPERATORS["x"],
    "with": in_with,
    "named tuple": lambda h: h * PAIRS[0].twice,
    "made inside": lambda h: h * Made().beta,
    "super": lambda h: h * CHILD.read(),
    "cached property": lambda h: h * CACHED.beta,
    "lru_cache": lambda h: h * remembered(),
    "named like torch's": lambda h: disguised(h),
    "singledispatch": lambda h: dispatched(h),
    "decorator": lambda h: wrapped(h),
    "keyword default": lambda h: keyword(h),
    "function in a table": lambda h: TABLE["f"](h),
    "closure of a closure": lambda h: NESTED(h),
    "simple namespace": lambda h: h * SIMPLE.inner.beta,
    "deque": lambda h: h * QUEUE[0],
    "array": lambda h: h * ARRAY[0],
    "bytearray": lambda h: h * BYTES[0],
    "user dict": lambda h: h * USER["b"],
    "numpy scalar": lambda h: h * float(NUMBER),
    "numpy array": lambda h: h * float(VECTOR[0]),
    "array of objects": lambda h: h * OBJECTS[0].beta,
    "context variable": lambda h: h * VARIABLE.get(),
    "thread local": lambda h: h * LOCAL.beta,
    "ctypes": lambda h: h * DOUBLE.value,
    "module __getattr__": lambda h: h * LAZY.beta,
    "getattr of a module": lambda h: h * getattr(PLAIN, "be" + "ta"),
    "vars of a module": lambda h: h * vars(PLAIN)["beta"],
    "__dict__ of a module": lambda h: h * PLAIN.__dict__["beta"],
    "from import inside": from_import,
    "sys.modules": lambda h: h * sys.modules["plain_of_a_test"].beta,
    "globals()": lambda h: h * globals()["NUMBER"],
    "builtins": lambda h: h * latephase_test_number,  # noqa: F821
    "file": lambda h: h * float(FILE.read_text()),
    "open": from_open,
    "iterator": lambda h: h * next(ITERATOR),
    "module of its own": lambda h: TEACHER(h),
    "slope only": lambda h: Scale.apply(h),
    "detached": lambda h: h + (h.detach() if FLAG else h),
    "comprehension in a lambda": lambda h: functools.reduce(lambda a, b: a * b, [NUMBER for _ in range(1)], h),
}
