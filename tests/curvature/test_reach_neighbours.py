"""Every other way in which code may read something: no use of a trace is older than it."""

import builtins
import itertools
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import reach_objects as objects
import reach_readers as readers
from reach_checks import data, never_stale
from reach_objects import Base, Nested, Pair, keyword, remembered
from reach_readers import (
    ARRAY,
    BYTES,
    CACHED,
    DOUBLE,
    LOCAL,
    NESTED,
    OBJECTS,
    PAIRS,
    PLAIN,
    QUEUE,
    READERS,
    SIMPLE,
    SLOTS,
    USER,
    VARIABLE,
    VECTOR,
)
from torch import Tensor, nn

from latephase import Objective


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
            monkeypatch.setitem(vars(readers), name, new)
        monkeypatch.setattr(objects, "NUMBER", readers.NUMBER)
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
        monkeypatch.setattr(objects, "NUMBER", 1.0 if value == 1.0 else 3.0)
        if value == 5.0:
            remembered.cache_clear()

    read = READERS["lru_cache"]
    objective = Objective(nn.Linear(4, 3).double(), lambda z, y: ((read(z) - y) ** 2).mean(), data())
    never_stale(objective, change, (1, 1, 1, 3, 3, 3, 3, 5, 5))
    remembered.cache_clear()


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
