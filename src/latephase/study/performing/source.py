"""What code says, apart from how it is laid out; and which modules a function of a user's own rests on."""

import ast
import hashlib
import importlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
_SITES = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class _Source:
    """What a module's text says.

    Attributes:
        digest: of its code.
        imports: what it imports, wherever in it: how many levels up, module, and names that may be modules too.
    """

    digest: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]


def digest_of(content: bytes) -> str:
    """A hash of what a Python source says: comments, docstrings and layout do not enter.

    Args:
        content: the source; hashed as it is where it is no Python.
    """
    return _read(content).digest


@cache
def _read(content: bytes) -> _Source:
    try:
        tree = ast.parse(content)
        words: list[str] = []
        _say(tree, words)
    except (SyntaxError, ValueError, RecursionError):
        return _Source(hashlib.sha256(content).hexdigest(), ())
    return _Source(hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest(), tuple(_imports(tree)))


def _say(node: ast.AST, words: list[str]) -> None:
    """Write a tree down without what is empty, which is as old as the Python that parsed it, and without docstrings."""
    words.append(type(node).__name__)
    for name, value in ast.iter_fields(node):
        if name in ("kind", "type_comment", "type_ignores") or value is None or value == []:
            if name == "value" and isinstance(node, ast.Constant):
                words.append("None")
            continue
        words.append(name)
        items = value if isinstance(value, list) else [value]
        if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            items = items[1:] if _is_text(items[0]) else items
        for item in items:
            if isinstance(item, ast.AST):
                _say(item, words)
            else:
                words.append(repr(item))
        words.append(")")


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                name = node.args[0].value
                yield len(name) - len(name.lstrip(".")), name.lstrip("."), ()


def code_of(factory: str) -> str:
    """A hash of the code that a function of a user's own rests on, found without running any of it.

    That is its module and, of what this imports, directly or not, all that is neither installed nor Python's own.

    Args:
        factory: PACKAGE.MODULE:FACTORY.

    Returns:
        The hash; that of nothing where there is no such module.
    """
    importlib.invalidate_caches()
    found: dict[str, str] = {}
    specs: dict[str, ModuleSpec | None] = {}
    first = factory.partition(":")[0]
    waiting = [first]
    while waiting:
        for name in _with_parents(waiting.pop()):
            if name in found or name.partition(".")[0] == PACKAGE:
                continue
            spec = _spec(name, specs)
            origin = _origin(spec)
            if spec is None or (origin is not None and name != first and _is_installed(origin)):
                continue
            found[name] = ""
            if origin is None:  # a folder without __init__.py
                continue
            content = origin.read_bytes()
            source = _read(content) if origin.suffix == ".py" else _Source(hashlib.sha256(content).hexdigest(), ())
            found[name] = source.digest
            package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
            waiting += _named(source, package)
    said = "".join(f"{name}\0{digest}\0" for name, digest in sorted(found.items()))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _with_parents(name: str) -> list[str]:
    """A module and the packages that it is in, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _named(source: _Source, package: str) -> Iterator[str]:
    """Absolute names of what a module imports; some are no modules, but something in one."""
    for level, module, names in source.imports:
        above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
        whole = ".".join([*above, *([module] if module else [])])
        if whole:
            yield whole
            yield from (f"{whole}.{name}" for name in names)


def _spec(name: str, known: dict[str, ModuleSpec | None]) -> ModuleSpec | None:
    """Where a module is, looked for as a function of a user's own is: the current directory first."""
    if name not in known:
        parent = name.rpartition(".")[0]
        if parent:
            package = _spec(parent, known)
            places = None if package is None else package.submodule_search_locations
            known[name] = None if places is None else PathFinder.find_spec(name, list(places))
        else:
            known[name] = PathFinder.find_spec(name, [str(Path.cwd()), *sys.path]) or _by_others(name)
    return known[name]


def _by_others(name: str) -> ModuleSpec | None:
    """Where a package is that was installed to be edited, and is found by a finder of its own."""
    for finder in sys.meta_path:
        if isinstance(finder, type) or not hasattr(finder, "find_spec"):  # Python's own three are classes
            continue
        try:
            if (spec := finder.find_spec(name, None)) is not None:
                return spec
        except Exception:  # of somebody's import hook
            continue
    return None


def _origin(spec: ModuleSpec | None) -> Path | None:
    return Path(spec.origin) if spec is not None and spec.origin and os.path.isfile(spec.origin) else None


def _is_installed(path: Path) -> bool:
    """Whether a module's file is Python's own or an installed package's."""
    if any(part in _SITES for part in path.parts):
        return True
    return any(path.resolve().is_relative_to(folder) for folder in _installed_folders())


@cache
def _installed_folders() -> list[Path]:
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [Path(folder).resolve() for folder in [*folders, *site.getsitepackages(), site.getusersitepackages()]]
