"""Objects and functions that read a number that changes: NUMBER, or an attribute of theirs."""

import argparse
import contextlib
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

NUMBER: Any = 1.0


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
