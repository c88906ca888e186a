"""What code reads beside its arguments, as far as Python shows it: captures, globals, attributes of modules."""

import builtins
import dis
import functools
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
    ]
)
"""Packages whose own functions compute from their arguments and from torch's settings, which a trace's key holds."""

_OF_PASSES = frozenset(
    f"{__name__.split('.')[0]}.{name}"
    for name in ("chunk_weights", "chunks", "copies", "program", "substitutes", "unwritten")
)
"""Our own modules that call the user's code in each pass: what they keep decides how, and not what it gives."""

_CONTEXT = frozenset(["open", "input", "eval", "exec", "compile", "globals", "locals", "vars", "__import__", "id"])
"""Builtins that read what no reader of code can see."""

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


@dataclass(frozen=True)
class Opaque:
    """Something that a function reads and whose value no key can hold: a clock, a file, a function in C."""

    name: str


@dataclass(frozen=True)
class Names:
    """Names that the code of a function uses, that of functions defined inside it included."""

    variables: tuple[str, ...]
    attributes: frozenset[str]
    imports: tuple[str, ...]


@functools.lru_cache(maxsize=8192)
def names_of(code: types.CodeType) -> Names:
    """The names in a code object."""
    variables, imports, attributes = set(), set(), set(code.co_names)
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
    """What a function may read beside its arguments, each with a name; `Opaque` for what cannot be told."""
    yield "defaults", function.__defaults__
    yield "keyword defaults", function.__kwdefaults__
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            yield name, None
    names = names_of(function.__code__)
    for name in names.variables:
        if name in function.__globals__:
            yield from _named(f"global {name}", function.__globals__[name], names, set())
        elif name in _CONTEXT and hasattr(builtins, name):
            yield f"builtin {name}", Opaque(name)
    for name in names.imports:
        if _root(name) not in _TRUSTED:
            module = sys.modules.get(name.split(".")[0])
            yield from _named(f"import {name}", Opaque(name) if module is None else module, names, set())


def _named(path: str, value: Any, names: Names, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """A global, or of a module those attributes that the code names."""
    if not isinstance(value, types.ModuleType):
        if not is_trusted(value):
            yield path, value
        return
    root = _root(value.__name__)
    if id(value) in seen or (root in _TRUSTED and not (root == "numpy" and "random" in names.attributes)):
        return
    seen.add(id(value))
    if root == "numpy" or root in sys.stdlib_module_names or "getattr" in names.variables:
        yield path, Opaque(value.__name__)
        return
    for name in sorted(names.attributes & vars(value).keys()):
        yield from _named(f"{path}.{name}", vars(value)[name], names, seen)


def is_trusted(value: Any) -> bool:
    """Whether this is code of a package whose functions read their arguments only."""
    if isinstance(value, (type, types.FunctionType)):
        return _is_home(value.__module__)
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        home = owner.__name__ if isinstance(owner, types.ModuleType) else getattr(owner, "__module__", None)
        return _root(value.__module__ or home or type(owner).__module__) in _TRUSTED
    return _root(type(value).__module__) == "logging"


def of_class(kind: type, made: bool = False, names: frozenset[str] | None = None) -> Iterator[tuple[str, Any]]:
    """The methods of a class and of its own bases, those of trusted packages left out.

    Args:
        kind: the class.
        made: the object is made where it is used, so that what makes it counts.
        names: only methods of these names, and special ones. Default: all.
    """
    for owner in kind.__mro__:
        if _is_home(owner.__module__):
            continue
        for name, value in vars(owner).items():
            special = name.startswith("__")
            if name in _NEVER_RUN or (name in _MADE and not made):
                continue
            if names is not None and not special and name not in names:
                continue
            function = _function_of(value)
            if function is not None and not is_trusted(function):
                yield f"{owner.__qualname__}.{name}", function


def _function_of(value: Any) -> types.FunctionType | None:
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, functools.cached_property):
        value = value.func
    return value if isinstance(value, types.FunctionType) else None


def methods_reached(kinds: set[type]) -> dict[type, frozenset[str]]:
    """For each class of a model's modules, the names of its methods that a forward pass may run."""
    names: set[str] = {"forward"}
    while True:
        found = {
            attribute
            for kind in kinds
            for _, function in of_class(kind, names=frozenset(names))
            for attribute in names_of(function.__code__).attributes
        }
        if found <= names:
            return {kind: frozenset(names) for kind in kinds}
        names |= found


def _root(module: str | None) -> str:
    return (module or "").split(".")[0]


def _is_home(module: str | None) -> bool:
    """Whether code of this module reads nothing that matters beside its arguments."""
    return _root(module) in _TRUSTED or module in _OF_PASSES
