"""Packages that are watched: whatever changes in them is a new version, and nothing else is."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from product_cases import REALS, VECTORS
from reach_checks import never_stale
from torch import nn

from latephase import Objective
from latephase.curvature.tracing import CannotTrace
from latephase.curvature.tracing.watching import MOST_CHANGES, RARELY, Watch

NAME = "package_of_a_test"
SOURCE = """
from collections import OrderedDict, deque
SCALE, TABLE, PAIR, QUEUE, NAMES = 1.0, {"inner": [1.0]}, ([1.0],), deque([1.0]), {"one"}
def act(h): return h * SCALE
def other(h): return h
class Registry(OrderedDict):
    def items(self): raise RuntimeError("not for readers")
    def __eq__(self, other): return True
class Settings:
    beta = 1.0
    def __init__(self): self.beta, self.inner = 1.0, {"deep": [1.0]}
    def scale(self, h): return h * self.beta
REGISTRY, SETTINGS = Registry(one=[1.0]), Settings()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "__init__.py").write_text(SOURCE)
    (tmp_path / NAME / "late.py").write_text("LATE = 1")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield importlib.import_module(NAME)
    for name in [each for each in sys.modules if each.split(".")[0] == NAME]:
        del sys.modules[name]


CHANGES = {
    "a number": lambda p: setattr(p, "SCALE", 2.0),
    "a function": lambda p: setattr(p, "act", p.other),
    "a class": lambda p: setattr(p, "Settings", type("Settings", (), {})),
    "a method": lambda p: setattr(p.Settings, "scale", lambda self, h: h),
    "an attribute of a class": lambda p: setattr(p.Settings, "beta", 2.0),
    "a method more": lambda p: setattr(p.Settings, "__call__", lambda self: 0),
    "a list in a dict": lambda p: p.TABLE["inner"].append(2.0),
    "a dict": lambda p: p.TABLE.update(more=1),
    "a list in a tuple": lambda p: p.PAIR[0].append(2.0),
    "a queue": lambda p: p.QUEUE.append(2.0),
    "a set": lambda p: p.NAMES.add("two"),
    "a registry": lambda p: p.REGISTRY.__setitem__("one", [2.0]),
    "a list in a registry": lambda p: p.REGISTRY["one"].append(2.0),
    "an attribute of a registry": lambda p: setattr(p.REGISTRY, "default", 2.0),
    "an object": lambda p: setattr(p.SETTINGS, "beta", 2.0),
    "inside an object": lambda p: p.SETTINGS.inner["deep"].append(2.0),
    "a tensor for a number": lambda p: setattr(p, "SCALE", torch.ones(3)),
    "a name that is gone": lambda p: delattr(p, "other"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_a_new_version(name, package):
    watch = Watch(frozenset([NAME]))
    assert [watch.look() for _ in range(3)] == [0, 0, 0]
    CHANGES[name](package)
    assert [watch.look() for _ in range(3)] == [1, 1, 1]


def test_the_environment_counts(package, monkeypatch):
    watch = Watch(frozenset([NAME]))
    monkeypatch.setenv("LATEPHASE_TEST_SCALE", "2")  # which no package reads; some programs write one at every step
    assert watch.look() == 0
    monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", "2")
    assert watch.look() == 1


def test_a_class_that_no_module_holds(package):
    watch = Watch(frozenset([NAME]))
    made = type("Made", (package.Settings,), {"__module__": NAME, "table": {"one": 1}})
    watch.know(made)
    assert watch.look() == 0
    made.table["one"] = 2
    assert watch.look() == 1
    made.table["one"] = 3
    assert watch.look() == 2


def test_imports_and_what_others_hold_are_no_change(package):
    watch = Watch(frozenset([NAME]))
    mine = SimpleNamespace(beta=1.0)
    watch.look()
    importlib.import_module(f"{NAME}.late")
    package.lazily = 1  # as modules do that load what they are asked for
    mine.beta = 2.0
    assert watch.look() == 0
    package.lazily = 2
    assert watch.look() == 1
    sys.modules[f"{NAME}.late"].LATE = 2
    assert watch.look() == 2


def test_who_changes_all_the_time_is_named(package):
    watch = Watch(frozenset([NAME]))
    watch.look()
    for count in range(MOST_CHANGES - 1):
        package.SCALE = 2.0 + count
        assert watch.look() == count + 1
    package.SCALE = 0.0
    for _ in range(2):
        with pytest.raises(CannotTrace, match=f"{NAME}, or a variable of the environment, changes at every step"):
            watch.look()
    for _ in range(RARELY * MOST_CHANGES):  # of looks that find nothing, which nobody gets who is refused
        watch._looks += 1
    assert watch.look() == MOST_CHANGES


class Through(nn.Module):
    def __init__(self, kind: type[nn.Module]):
        super().__init__()
        self.linear, self.last = nn.Linear(4, 4), kind()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.linear(inputs))[:, :3]


@pytest.fixture
def watched(package, monkeypatch):
    """Models of the package, which latephase watches."""
    from latephase.curvature.tracing import description, signature, trust, watching

    package.Layer = type("Layer", (nn.Module,), {"forward": lambda self, h: h, "__module__": NAME})
    for module in (trust, watching):
        monkeypatch.setattr(module, "WATCHED", frozenset([NAME]))
    for module in (description, signature):
        monkeypatch.setattr(module, "watch", Watch(frozenset([NAME])))
    trust.watched_classes.cache_clear()
    exec(compile("def forward(self, h): return act(h) * TABLE['inner'][-1]", "<a package>", "exec"), vars(package))
    package.Layer.forward = package.forward
    yield package
    trust.watched_classes.cache_clear()


@pytest.mark.parametrize("change", ["SCALE", "act", "inner", "forward"])
def test_no_trace_of_a_watched_package_is_stale(change, watched):
    def mine(self, h):
        return 3 * h

    def do(value: float) -> None:
        if change == "inner":
            watched.TABLE["inner"][-1] = value
        elif change == "forward":
            watched.Layer.forward = watched.forward if value == 1 else mine
        elif change == "act":
            watched.act = watched.other if value == 1 else torch.tanh
        else:
            watched.SCALE = value

    model = Through(watched.Layer).double()
    assert never_stale(Objective(model, nn.MSELoss(), (VECTORS, REALS)), do) == "traced"
