"""What code reads beside its arguments, as far as Python shows it: captures, globals, attributes of modules.

Nothing is left out in silence: what cannot be told is `Opaque`, and a trace that reaches it is compared at every use.
"""

import builtins
import dis
import functools
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .trust import is_trusted, is_watched, root_of, trusted_package

_CONTEXT = frozenset(["open", "input", "eval", "exec", "compile", "globals", "locals", "vars", "__import__", "id"])
"""Builtins that read what no reader of code can see."""

_BY_NAME = frozenset(["getattr", "vars", "__dict__", "__getattribute__", "attrgetter", "methodcaller"])
"""Names of what may ask for an attribute by a name that is put together."""

_OF_FILES = frozenset(
    [
        "open",
        "read_text",
        "read_bytes",
        "exists",
        "stat",
        "lstat",
        "is_file",
        "is_dir",
        "iterdir",
        "glob",
        "rglob",
        "walk",
    ]
)
"""Methods of paths that look at the disk."""

_FROM_OUTSIDE = {
    "torch": frozenset(["load", "from_file", "initial_seed", "get_rng_state", "hub", "get_num_threads"]),
    "numpy": frozenset(["load", "fromfile", "memmap", "loadtxt", "genfromtxt", "random"]),
}
"""Names in trusted packages of what reads files, or the process."""


@dataclass(frozen=True)
class Opaque:
    """Something that a function reads and whose value no key can hold: a clock, a file, a function in C."""

    name: str


class Exactly:
    """Code that need not be read, but must be the same: a function of torch's may stand in another's place."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exactly) and self.value is other.value


@dataclass(frozen=True)
class Watched:
    """Something of a package that is watched, see `watching`."""


@dataclass(frozen=True)
class Names:
    """Names that the code of a function uses, that of functions defined inside it included.

    Attributes:
        variables: its globals.
        attributes: whatever it may ask of anything, and strings that may be given to `getattr`.
        imports: modules that it imports while it runs.
    """

    variables: tuple[str, ...]
    attributes: frozenset[str]
    imports: tuple[str, ...]

    @property
    def by_name(self) -> bool:
        """Whether attributes are asked for whose names are not in the code."""
        return not _BY_NAME.isdisjoint(self.variables) or not _BY_NAME.isdisjoint(self.attributes)

    @property
    def of_files(self) -> bool:
        """Whether something is asked for that a path reads from the disk."""
        return not _OF_FILES.isdisjoint(self.attributes)


@functools.lru_cache(maxsize=8192)
def names_of(code: types.CodeType) -> Names:
    """The names in a code object."""
    variables, imports, attributes = set(), set(), set(code.co_names)
    attributes.update(x for x in code.co_consts if isinstance(x, str) and x.isidentifier())
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            variables.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            imports.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = names_of(constant)
            variables.update(inner.variables)
            imports.update(inner.imports)
            attributes.update(inner.attributes)
    return Names(tuple(sorted(variables)), frozenset(attributes), tuple(sorted(imports)))


def read_by(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function may read beside its arguments, each with a name; `Opaque` for what cannot be told.

    Of a function of a trusted package that is what it captured: somebody else's function, where it wraps one.
    """
    yield "defaults", function.__defaults__
    yield "keyword defaults", function.__kwdefaults__
    names = names_of(function.__code__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield from _named(name, cell.cell_contents, names, set())
        except ValueError:  # not bound yet
            yield name, None
    if is_trusted(function):
        return
    for name in names.variables:
        if name in function.__globals__:
            yield from _named(f"global {name}", function.__globals__[name], names, set())
        elif hasattr(builtins, name):
            value = Opaque(name) if name in _CONTEXT else getattr(builtins, name)
            if not is_trusted(value):
                yield f"builtin {name}", value
    for name in names.imports:
        yield from _imported(name, function.__globals__.get("__package__"), names)


def _imported(name: str, package: str | None, names: Names) -> Iterator[tuple[str, Any]]:
    """What is read of a module that is imported while a function runs, and of the packages around it."""
    if trusted_package(name):
        yield from _named(f"import {name}", sys.modules.get(root_of(name), Opaque(name)), names, set())
        return
    parts = name.split(".")
    whole = [".".join(parts[: n + 1]) for n in range(len(parts))]
    relative = [f"{package}.{each}" for each in whole] if package else []
    found = [sys.modules[each] for each in (*whole, *relative) if each in sys.modules]
    for module in found or [Opaque(name)]:
        yield from _named(f"import {getattr(module, '__name__', name)}", module, names, set())


def _named(path: str, value: Any, names: Names, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """A variable, or of a module those attributes that the code names."""
    if is_watched(value):
        yield f"{path} of a package", Watched()
    if not isinstance(value, types.ModuleType):
        read = not is_trusted(value) or getattr(value, "__closure__", None) or hasattr(value, "__wrapped__")
        yield path, value if read else Exactly(value)
        return
    root = root_of(value.__name__)
    if id(value) in seen:
        return
    seen.add(id(value))
    if trusted_package(root):
        yield f"{path} itself", Exactly(value)
        if not names.attributes.isdisjoint(_FROM_OUTSIDE.get(root, ())):
            yield path, Opaque(value.__name__)
        return
    if root in sys.stdlib_module_names or names.by_name or "__getattr__" in vars(value):
        yield path, Opaque(value.__name__)
        return
    for name in sorted(names.attributes & vars(value).keys()):
        yield from _named(f"{path}.{name}", vars(value)[name], names, seen)
