"""Every other way in which code may read something: no use of a trace is older than it."""

import argparse
import array
import builtins
import collections
import contextlib
import contextvars
import ctypes
import functools
import itertools
import json
import sys
import threading
import types
import warnings
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latephase import Objective
from latephase.curvature import linearize

NUMBER: Any = 1.0
FLAG = False


class Nested:
    settings = argparse.Namespace(beta=1.0)
    pair: ClassVar[dict[str, Any]] = {"inner": argparse.Namespace(beta=1.0)}
    nothing = None


class Slots:
    __slots__ = ("beta",)

    def __init__(self):
        self.beta = 1.0


class Computed:
    """Attributes that are made when they are asked for."""

    def __getattr__(self, name: str) -> float:
        if name.startswith("__"):
            raise AttributeError(name)
        return NUMBER


class Meta(type):
    @property
    def beta(cls) -> float:
        return NUMBER


class WithMeta(metaclass=Meta):
    pass


class Descriptor:
    def __get__(self, instance: Any, kind: type) -> float:
        return NUMBER


class Described:
    beta = Descriptor()


class Operators:
    def __call__(self, h: Tensor) -> Tensor:
        return h * NUMBER

    def __getitem__(self, key: str) -> float:
        return NUMBER

    def __rmul__(self, h: Any) -> Any:
        return h * NUMBER

    __array_priority__ = 1000
    __torch_function__ = classmethod(lambda cls, func, types, args=(), kwargs=None: args[0] * NUMBER)

    def __enter__(self) -> float:
        return NUMBER

    def __exit__(self, *_: object) -> None:
        pass


class Pair(NamedTuple):
    beta: float
    other: float = 0.0

    @property
    def twice(self) -> float:
        return 2 * self.beta


class Made:
    def __init__(self):
        self.beta = NUMBER


class Base:
    beta = 1.0

    def read(self) -> float:
        return self.beta


class Child(Base):
    def read(self) -> float:
        return super().read()


class Cached:
    @functools.cached_property
    def beta(self) -> float:
        return NUMBER


class Scale(torch.autograd.Function):
    """Its value is the same; the slope is a global's."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g * NUMBER

    @staticmethod
    def jvp(ctx, t):
        return t * NUMBER


class Teacher(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h * NUMBER


@functools.lru_cache(maxsize=1)
def remembered() -> float:
    return NUMBER


@functools.wraps(torch.nn.functional.relu)
def disguised(h: Tensor) -> Tensor:
    return h * NUMBER


@contextlib.contextmanager
def scaled():
    yield NUMBER


@functools.singledispatch
def dispatched(h: Any) -> Any:
    return h


@dispatched.register
def _(h: Tensor) -> Tensor:
    return h * NUMBER


def decorated(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    @functools.wraps(function)
    def inner(h: Tensor) -> Tensor:
        return NUMBER * function(h)

    return inner


def keyword(h: Tensor, *, scale: float = 1.0) -> Tensor:
    return h * scale


@decorated
def wrapped(h: Tensor) -> Tensor:
    return h


def outer() -> Callable[[Tensor], Tensor]:
    held = argparse.Namespace(beta=1.0)

    def middle() -> Callable[[Tensor], Tensor]:
        return lambda h: h * held.beta

    def change(value: float) -> None:
        held.beta = value

    inner = middle()
    inner.change = change
    return inner


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
METHOD = attrgetter("_read")


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


@pytest.fixture
def change(monkeypatch, tmp_path) -> Callable[[float], None]:
    def to(value: float) -> None:
        for name, new in {
            "NUMBER": np.float32(value),
            "FLAG": value != 1.0,
            "VECTOR": VECTOR,
            "FILE": tmp_path / "number",
            "ITERATOR": itertools.repeat(value),
        }.items():
            monkeypatch.setitem(globals(), name, new)
        for thing in (Nested.settings, Nested.pair["inner"], SLOTS, SIMPLE.inner, OBJECTS[0], Base):
            monkeypatch.setattr(thing, "beta", value)
        monkeypatch.setattr(PLAIN, "beta", value, raising=False)
        monkeypatch.setattr(LOCAL, "beta", value, raising=False)
        monkeypatch.setattr(Nested, "nothing", None if value == 1.0 else value)
        monkeypatch.setattr(builtins, "latephase_test_number", value, raising=False)
        monkeypatch.setitem(keyword.__kwdefaults__, "scale", value)
        PAIRS[0], QUEUE[0], ARRAY[0], BYTES[0], USER["b"] = Pair(value), value, value, int(value), value
        VECTOR[:] = value
        VARIABLE.set(value)
        DOUBLE.value = value
        NESTED.change(value)  # type: ignore[attr-defined]
        vars(CACHED).pop("beta", None)
        remembered.cache_clear()
        (tmp_path / "number").write_text(str(value))

    to(1.0)
    return to


class Reading(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        self.linear, self.read = nn.Linear(4, 3), READERS[name]  # not READERS: what cannot be seen is in there, too

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.linear(x)).tanh()


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(5, 4).double(), torch.randn(5, 3).double()


def never_stale(objective: Objective, change: Callable[[float], None], values=(1, 1, 1, 1, 1, 1, 3, 3)) -> str:
    """Change something at the sixth use of the trace, and compare; how the last products were computed."""
    v = None
    for value in values:
        change(float(value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            curved = linearize(objective)
            other = linearize(objective, method="double_backward")
        v = torch.ones_like(other.gradient) if v is None else v
        torch.testing.assert_close(curved.loss, other.loss)
        torch.testing.assert_close(curved.gradient, other.gradient)
        torch.testing.assert_close(curved.matvec(v), other.matvec(v))
    return curved.method


@pytest.mark.parametrize("name", READERS)
def test_a_model_that_reads(name, change):
    never_stale(Objective(Reading(name).double(), nn.MSELoss(), data()), change)


@pytest.mark.parametrize("name", READERS)
def test_a_loss_that_reads(name, change):
    read = READERS[name]
    never_stale(Objective(nn.Linear(4, 3).double(), lambda z, y: ((read(z) - y) ** 2).mean(), data()), change)


def test_a_cache_that_is_emptied_later(monkeypatch):
    remembered.cache_clear()

    def change(value: float) -> None:
        monkeypatch.setitem(globals(), "NUMBER", 1.0 if value == 1.0 else 3.0)
        if value == 5.0:
            remembered.cache_clear()

    read = READERS["lru_cache"]
    objective = Objective(nn.Linear(4, 3).double(), lambda z, y: ((read(z) - y) ** 2).mean(), data())
    never_stale(objective, change, (1, 1, 1, 3, 3, 3, 3, 5, 5))
    remembered.cache_clear()


class Dynamic(nn.Module):
    """Asks for its methods by names that it puts together."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "_re" + "ad")(self.linear(x))

    def _read(self, h: Tensor) -> Tensor:
        return h * NUMBER


class ByConstant(Dynamic):
    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "_read")(self.linear(x))  # noqa: B009


class ByGetter(Dynamic):
    def forward(self, x: Tensor) -> Tensor:
        return METHOD(self)(self.linear(x))


class Statics(nn.Module):
    beta = 1.0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    @staticmethod
    def _one(h: Tensor) -> Tensor:
        return h * NUMBER

    @classmethod
    def _two(cls, h: Tensor) -> Tensor:
        return cls._one(h)

    @property
    def two(self) -> Callable[[Tensor], Tensor]:
        return self._two

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.linear(x))


class Times(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * NUMBER


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(lambda module, args, output: output * NUMBER)
    return model


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3))
    parametrize.register_parametrization(model[0], "weight", Times())
    return model


def forward_of_its_own() -> nn.Module:
    model = nn.Linear(4, 3)
    model.forward = lambda x: nn.functional.linear(x, model.weight, model.bias) * NUMBER
    return model


@pytest.mark.parametrize("build", [Dynamic, ByConstant, ByGetter, Statics, hooked, parametrized, forward_of_its_own])
def test_ways_through_a_model(build, change):
    never_stale(Objective(build().double(), nn.MSELoss(), data()), change)


REPLACED = {
    "forward": (nn.Tanh, "forward", lambda value: lambda self, h: torch.tanh(value * h)),
    "another method": (
        nn.Conv1d,
        "_conv_forward",
        lambda value: lambda self, x, w, b: value * nn.functional.conv1d(x, w, b),
    ),
    "function": (nn.functional, "relu", lambda value: lambda h, inplace=False: value * h.clamp(min=0)),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_layer_of_torchs_that_was_replaced(name, monkeypatch):
    owner, attribute, build = REPLACED[name]
    layers = [nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 1, 1), nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.ReLU()]
    model = nn.Sequential(*layers).double()

    def change(value: float) -> None:
        if value != 1.0:
            monkeypatch.setattr(owner, attribute, build(value))

    never_stale(Objective(model, nn.MSELoss(), data()), change)


def test_hooks_of_all_modules():
    handles = []

    def change(value: float) -> None:
        for handle in handles:
            handle.remove()
        handles.clear()
        if value != 1.0:
            handles.append(nn.modules.module.register_module_forward_hook(lambda m, a, output: output * value))

    try:
        never_stale(Objective(nn.Linear(4, 3).double(), nn.MSELoss(), data()), change)
    finally:
        change(1.0)


def test_an_attribute_of_a_scripted_module():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.beta = nn.Linear(4, 3), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.beta

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(Scripted().double())
    never_stale(Objective(model, nn.MSELoss(), data()), lambda value: setattr(model, "beta", value))


def test_the_settings_of_torch(change):
    class Fresh(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * torch.ones(()).dtype.itemsize

    before = torch.get_default_dtype()
    try:
        never_stale(
            Objective(Fresh().double(), nn.MSELoss(), data()),
            lambda value: torch.set_default_dtype(torch.float32 if value == 1.0 else torch.float64),
        )
    finally:
        torch.set_default_dtype(before)


SEEN = [
    "object of a class",
    "slots",
    "named tuple",
    "made inside",
    "super",
    "decorator",
    "keyword default",
    "function in a table",
    "closure of a closure",
    "simple namespace",
    "numpy array",
    "module of its own",
    "slope only",
    "detached",
]


@pytest.mark.parametrize("name", SEEN)
def test_what_the_key_sees_is_traced_anew(name, change):
    objective = Objective(Reading(name).double(), nn.MSELoss(), data())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert never_stale(objective, change, (1, 1, 1, 1, 3, 3)) == "traced"
