"""Packages whose code is not read: whether anything changed that their modules and classes hold is looked at instead.

A model of such a package reaches most of it, which is more than a key can describe. Its functions compute from their
arguments, from what hangs at the model (which the key of a trace holds), from what its modules and classes hold, and
from variables of the environment. The last two are kept here, and any change of them is a new version, under which no
older trace is found: a function or a class replaced, a method or an attribute of a class, an entry of a registry, a
setting of a module, at any depth of containers and of objects of the package's own classes.
"""

import os
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .operations import CannotTrace
from .trust import WATCHED, root_of

MOST_CHANGES, RARELY = 32, 8
"""Who changes a package more often than so, and more often than at one look in eight, would trace for nothing."""

_VARIABLES = ("TRANSFORMERS_", "PEFT_", "HF_", "FLASH_ATTENTION_", "NPU_", "XLA_")
"""How the variables of the environment begin that functions of the packages read while they run."""

_CONTAINERS = (dict, list, set, deque)
_AS_KEPT = (type, types.FunctionType, types.ModuleType)
"""What modules hold that is looked into otherwise, or not at all."""


class _Kept:
    """What a container held: the same objects, or equal ones, are no change."""

    def __init__(self, container: Any):
        self.container = container
        kinds: tuple[Any, ...] = (*_CONTAINERS, types.MappingProxyType)
        kind = next(each for each in kinds if isinstance(container, each))  # and not somebody's own methods
        self._equal: Callable[[Any, Any], Any] = kind.__eq__
        self.copy: Any = dict(dict.items(container)) if kind is dict else kind.copy(container)

    def holds(self) -> bool:
        """Whether it holds what it held."""
        try:
            return self._equal(self.container, self.copy) is True
        except Exception:  # of somebody's __eq__, of tensors say, which is asked of other objects only
            return False

    def grew(self) -> bool:
        """Whether there is more in it, and nothing else changed."""
        return all(self.container.get(name, self) is value for name, value in self.copy.items())


class Watch:
    """What packages hold, as it was when it was looked at last.

    Args:
        packages: their names.

    Attributes:
        version: the number of changes that were seen.
    """

    def __init__(self, packages: frozenset[str]):
        self.version = 0
        self._packages = packages
        self._modules: dict[str, _Kept] = {}
        self._classes: dict[type, _Kept] = {}
        self._contents: list[_Kept] = []
        self._seen: dict[int, Any] = {}
        self._loaded = 0
        self._looks = 0
        self._environment = _environment()

    def look(self) -> int:
        """The version of all watched packages that are loaded.

        Raises:
            CannotTrace: they change all the time.
        """
        self._looks += 1
        if self._has_changed():
            self.version += 1
            self._forget()
        if self.version >= max(MOST_CHANGES, self._looks / RARELY):
            names = " or ".join(sorted(self._packages))
            raise CannotTrace(f"{names}, or a variable of the environment, changes at every step")
        if len(sys.modules) != self._loaded:
            self._find_modules()
        return self.version

    def know(self, kind: type) -> None:
        """Watch a class, too, which no module may hold."""
        if kind not in self._classes and self._is_one_of(kind.__module__):
            self._classes[kind] = _Kept(vars(kind))
            self._open(_contents_of(vars(kind)))

    def _is_one_of(self, module: Any) -> bool:
        return root_of(module) in self._packages

    def _has_changed(self) -> bool:
        for name, kept in self._modules.items():
            if not kept.holds():
                if not kept.grew():
                    return True
                self._keep(name, sys.modules.get(name))  # by an import within a function: nobody read it before
        return _environment() != self._environment or not (
            all(kept.holds() for kept in self._classes.values()) and all(kept.holds() for kept in self._contents)
        )

    def _forget(self) -> None:
        classes = list(self._classes)
        self._environment, self._loaded = _environment(), 0
        for kept in (self._modules, self._classes, self._contents, self._seen):
            kept.clear()
        for kind in classes:
            self.know(kind)

    def _find_modules(self) -> None:
        self._loaded = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if self._is_one_of(name) and name not in self._modules:
                self._keep(name, module)

    def _keep(self, name: str, module: Any) -> None:
        if not isinstance(module, types.ModuleType):
            return
        self._modules[name] = _Kept(vars(module))
        for value in list(vars(module).values()):
            if isinstance(value, type):
                self.know(value)
        if type(module) is types.ModuleType:  # others load what they are asked for, and define nothing
            self._open(_contents_of(vars(module)))

    def _open(self, values: Iterable[Any]) -> None:
        """Keep what containers and objects hold, at any depth."""
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if id(value) in self._seen:
                continue
            for container in self._inside(value):
                self._seen[id(value)] = value
                self._contents.append(_Kept(container))
                waiting += dict.values(container) if isinstance(container, dict) else self._contents[-1].copy
            waiting += value if isinstance(value, tuple) else ()

    def _inside(self, value: Any) -> Iterator[Any]:
        """The containers that a value is or has: its items, and its attributes where its class is of the packages."""
        if isinstance(value, _CONTAINERS):
            yield value
        if not isinstance(value, _AS_KEPT) and self._is_one_of(type(value).__module__) and hasattr(value, "__dict__"):
            yield vars(value)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}


def _contents_of(held: Any) -> list[Any]:
    """What a module or a class holds under names of its own."""
    return [value for name, value in held.items() if not name.startswith("__")]


watch = Watch(WATCHED)
"""Of this process."""
