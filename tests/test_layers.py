"""Imports run downward only, rooms are entered by their doors, and no file imports in a circle."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import latephase

SOURCE = Path(latephase.__file__).parent
LAYERS = {
    "__main__": 8,
    "cli": 7,
    "bench": 6,
    "finishing": 6,
    "study": 5,
    "problems": 4,
    "diagnosis": 4,
    "integrations": 4,
    "optim": 3,
    "curvature": 2,
    "objective": 1,
    "solve": 0,
    "parameters": 0,
    "records": 0,
    "student": 0,
    "user_code": 0,
}
"""Rooms by the floor they stand on; rooms of one floor do not know each other. Inside a room the order is that of its
imports, which must be one: no circles."""
WINGS = ("study", "problems")
"""Rooms whose doors are those of the rooms inside, and their own files."""
READING = (
    *("records.files", "outline", "scores_table", "results", "results.load", "results.score"),
    *("page", "page.figures", "page.page", "suite", "suite.page", "command"),
)
"""Modules that read result files, of `study` but for the first; torch must not be needed for that."""

Imports = list[tuple[str, int, bool]]


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted names of a package's modules; a package's own name stands for its `__init__`."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(tree: ast.AST, top: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it runs when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        yield node, top
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            inside = True
        yield from statements(node, top and not inside)


@functools.cache
def names_at(path: Path) -> set[str]:
    """Names that a module imports or defines: a room may have a function that is named as its file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
    return found


def imports_of(name: str, path: Path, known: dict[str, Path]) -> Imports:
    """Absolute names that a module imports, with line, and whether at import time."""
    found: Imports = []
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, top in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            bound = names_at(known[source]) if source in known and source != name else set()
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                found.append((whole if whole in known and alias.name not in bound else source, node.lineno, top))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            found += [(a.value, node.lineno, top) for a in node.args[:1] if isinstance(a, ast.Constant)]
    return found


def violations(root: Path) -> list[str]:
    """Every import against the layers or past a door, in words."""
    known, wrong = modules_of(root), []
    for name, path in known.items():
        own = name.split(".")[1] if "." in name else ""
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for target, line, _ in imports_of(name, path, known):
            if target.split(".")[0] != root.name:
                continue
            other = target.split(".")[1] if "." in target else ""
            if own != other and not _allowed(own, other):
                wrong.append(f"{name}:{line} imports {target}")
            elif target in known and not _by_a_door(package, target):
                wrong.append(f"{name}:{line} imports {target}, which is inside a room")
        if own and own not in LAYERS:
            wrong.append(f"{name} belongs to no layer")
    return wrong


def _allowed(own: str, other: str) -> bool:
    if not own:  # the package's own names come from the library
        return LAYERS.get(other, 9) <= LAYERS["optim"] or other in ("diagnosis", "finishing")
    if not other:  # ... and only those above the library may ask for them
        return LAYERS.get(own, 0) >= LAYERS["study"]
    return own != "solve" and LAYERS.get(own, 0) > LAYERS.get(other, 9)


def _by_a_door(package: str, target: str) -> bool:
    """Whether a module may be imported from a package: it stands in one around that, or is the door of a room there."""
    around = target.rpartition(".")[0]
    if not around or package == around or package.startswith(f"{around}."):
        return True
    above, _, room = around.rpartition(".")
    return room in WINGS and (package == above or package.startswith(f"{above}."))


def circles(root: Path) -> list[list[str]]:
    """Modules that import each other in a circle, those within functions and for types included."""
    known = modules_of(root)
    graph = {n: {t for t, _, _ in imports_of(n, p, known) if t in known and t != n} for n, p in known.items()}
    place: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        place[name] = lowest[name] = len(place)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in place:
                visit(target)
            if target in stack:
                lowest[name] = min(lowest[name], lowest[target])
        if lowest[name] == place[name]:
            members = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(members) > 1:
                found.append(sorted(members))

    for name in sorted(known):
        if name not in place:
            visit(name)
    return found


def path_to(root: Path, start: str, forbidden: str) -> list[str] | None:
    """Modules of the package through which importing `start` imports `forbidden`; None where it does not."""
    known = modules_of(root)
    waiting, seen = [[start]], set()
    while waiting:
        way = waiting.pop()
        name = way[-1]
        if name in seen:
            continue
        seen.add(name)
        parents = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)]
        targets = [target for target, _, top in imports_of(name, known[name], known) if top]
        if any(target.split(".")[0] == forbidden for target in targets):
            return way
        waiting += [[*way, target] for target in parents + targets if target in known]
    return None


def test_imports_run_downward_and_through_doors():
    assert violations(SOURCE) == []


def test_nothing_imports_in_a_circle():
    assert circles(SOURCE) == []


def test_the_checker_reads_the_whole_package():
    known = modules_of(SOURCE)
    assert {name.split(".")[1] for name in known if "." in name} == set(LAYERS)
    own = [target for name, path in known.items() for target, _, _ in imports_of(name, path, known)]
    assert sum(target.startswith("latephase.") for target in own) > 50


@pytest.mark.parametrize("module", READING)
def test_reading_a_study_never_imports_torch(module):
    where = module if module.startswith("records") else f"study.{module}"
    assert path_to(SOURCE, f"latephase.{where}", "torch") is None


def test_the_library_imports_torch():
    assert path_to(SOURCE, "latephase.optim.newton", "torch") is not None


PLANTED = {
    "from ..study import run": ("optim", "latephase.optim.x:2 imports latephase.study"),
    "from ..optim.hessian_free import HessianFree": (
        "curvature", "latephase.curvature.x:2 imports latephase.optim.hessian_free"),
    "def f():\n    from ..solve import armijo": ("records", "latephase.records.x:3 imports latephase.solve"),
    "import latephase.curvature": ("solve", "latephase.solve.x:2 imports latephase.curvature"),
    "from .. import parameters": ("solve", "latephase.solve.x:2 imports latephase.parameters"),
    "from .. import Objective": ("optim", "latephase.optim.x:2 imports latephase"),
    "from latephase import cli": ("study", "latephase.study.x:2 imports latephase.cli"),
    "if True:\n    class A:\n        from ..problems import get": (
        "optim", "latephase.optim.x:4 imports latephase.problems"),
    "import importlib\nimportlib.import_module('latephase.study.run')": (
        "problems", "latephase.problems.x:3 imports latephase.study.run"),
    "from ..solve.y import z": ("optim", "latephase.optim.x:2 imports latephase.solve.y, which is inside a room"),
    "from .parts.y import z": ("optim", "latephase.optim.x:2 imports latephase.optim.parts.y, which is inside a room"),
}  # fmt: skip


@pytest.mark.parametrize("line", PLANTED)
def test_the_checker_finds_a_planted_violation(line, tmp_path):
    room, expected = PLANTED[line]
    root = plant(tmp_path, {f"{room}/x.py": f"import math\n{line}\n", "solve/y.py": "z = 1\n"})
    assert violations(root) == [expected]


def test_the_checker_lets_pass_what_runs_downward(tmp_path):
    lines = "from ..solve import armijo\nfrom ..objective import Local\nfrom .y import z\nfrom .parts import z\n"
    files = {
        "optim/x.py": lines,
        "study/x.py": "from .. import __version__\nfrom ..optim import z\n",
        "optim/parts/y.py": "from ..x import a\nimport torch.optim\n",
        "bench/x.py": "from ..study.page import draw\n",
    }
    root = plant(tmp_path, files)
    assert violations(root) == []


def test_a_circle_is_found(tmp_path):
    files = {
        "solve/x.py": "def f():\n    from .y import g\n",
        "solve/y.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .x import f\n",
    }
    assert circles(plant(tmp_path, files)) == [["latephase.solve.x", "latephase.solve.y"]]


def test_a_module_of_no_layer_is_found(tmp_path):
    assert violations(plant(tmp_path, {"helpers.py": ""})) == ["latephase.helpers belongs to no layer"]


@pytest.mark.parametrize(("files", "found"), [
    ({"study/x.py": "from .y import z", "study/y.py": "import torch.nn"}, True),
    ({"study/x.py": "from . import y", "study/y.py": "from ..records import R", "records/__init__.py": "import torch"},
     True),
    ({"study/x.py": "", "__init__.py": "from .parameters import O", "parameters.py": "from torch import nn"}, True),
    ({"study/x.py": "def f():\n    import torch"}, False),
    ({"study/x.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"}, False),
    ({"study/x.py": "if 1:\n    try:\n        import torch\n    except ImportError:\n        pass"}, True),
])  # fmt: skip
def test_the_way_to_torch_is_found(files, found, tmp_path):
    assert (path_to(plant(tmp_path, files), "latephase.study.x", "torch") is not None) == found


def plant(folder: Path, files: dict[str, str]) -> Path:
    root = folder / "latephase"
    for room in ("cli", "study", "study/page", "problems", "optim", "optim/parts", "curvature", "objective", "solve",
                 "records", "bench"):  # fmt: skip
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").write_text("")
    for name in ("__init__", "parameters"):
        (root / f"{name}.py").write_text("")
    for name, text in {"optim/parts/y.py": "z = 1\n", **files}.items():
        (root / name).write_text(text)
    return root
