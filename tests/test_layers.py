"""Imports run downward only: cli, bench, study, problems, optim, curvature and solve, objective."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import latephase

SOURCE = Path(latephase.__file__).parent
LAYERS = {
    "cli": 7,
    "bench": 6,
    "study": 5,
    "problems": 4,
    "diagnosis": 4,
    "writers": 4,
    "optim": 3,
    "curvature": 2,
    "solve": 2,
    "objective": 1,
    "parameters": 1,
    "reduce": 1,
    "rank_differences": 1,
    "chunk_weights": 1,
    "chunks": 1,
    "held": 1,
    "copies": 1,
    "program": 1,
    "randomness": 1,
    "kernels": 1,
    "memory": 1,
    "microbatch": 1,
    "weight_decay": 1,
    "structural_damping": 1,
    "strict_json": 1,
    "visible": 1,
    "functional": 1,
    "exclusive": 1,
    "elementary": 1,
    "substitutes": 1,
    "unwritten": 1,
    "factory": 1,
}
READING = ("store", "results", "score", "style", "figures", "reading", "report")
"""Modules of `study` that read result files; torch must not be needed for that."""

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
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                found.append((whole if whole in known else source, node.lineno, top))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            found += [(a.value, node.lineno, top) for a in node.args[:1] if isinstance(a, ast.Constant)]
    return found


def violations(root: Path) -> list[str]:
    """Every import against the layers, in words."""
    known, wrong = modules_of(root), []
    for name, path in known.items():
        own = name.split(".")[1] if "." in name else ""
        for target, line, _ in imports_of(name, path, known):
            if target.split(".")[0] != root.name:
                continue
            other = target.split(".")[1] if "." in target else ""
            if own == other or _allowed(own, other):
                continue
            wrong.append(f"{name}:{line} imports {target}")
        if own and own not in LAYERS:
            wrong.append(f"{name} belongs to no layer")
    return wrong


def _allowed(own: str, other: str) -> bool:
    if not own:  # the package's own names come from the library
        return LAYERS.get(other, 9) <= LAYERS["optim"] or other in ("diagnosis", "writers")
    if not other:  # ... and only those above the library may ask for them
        return LAYERS.get(own, 0) >= LAYERS["study"]
    if own == "solve":
        return False
    below = LAYERS.get(own, 0) > LAYERS.get(other, 9)
    return below or LAYERS.get(own) == LAYERS.get(other) == 1


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


def test_imports_run_downward_only():
    assert violations(SOURCE) == []


def test_the_checker_reads_the_whole_package():
    known = modules_of(SOURCE)
    assert {name.split(".")[1] for name in known if "." in name} == set(LAYERS)
    own = [target for name, path in known.items() for target, _, _ in imports_of(name, path, known)]
    assert sum(target.startswith("latephase.") for target in own) > 50


@pytest.mark.parametrize("module", READING)
def test_reading_a_study_never_imports_torch(module):
    assert path_to(SOURCE, f"latephase.study.{module}", "torch") is None


def test_the_library_imports_torch():
    assert path_to(SOURCE, "latephase.optim.hessian_free", "torch") is not None


PLANTED = {
    "from ..study import run": ("optim", "latephase.optim.x:2 imports latephase.study"),
    "from ..optim.hessian_free import HessianFree": (
        "curvature", "latephase.curvature.x:2 imports latephase.optim.hessian_free"),
    "def f():\n    from ..solve import armijo": ("curvature", "latephase.curvature.x:3 imports latephase.solve"),
    "import latephase.curvature": ("solve", "latephase.solve.x:2 imports latephase.curvature"),
    "from .. import reduce": ("solve", "latephase.solve.x:2 imports latephase.reduce"),
    "from .. import Objective": ("optim", "latephase.optim.x:2 imports latephase"),
    "from latephase import cli": ("study", "latephase.study.x:2 imports latephase.cli"),
    "if True:\n    class A:\n        from ..problems import get": (
        "optim", "latephase.optim.x:4 imports latephase.problems"),
    "import importlib\nimportlib.import_module('latephase.study.run')": (
        "problems", "latephase.problems.x:3 imports latephase.study.run"),
}  # fmt: skip


@pytest.mark.parametrize("line", PLANTED)
def test_the_checker_finds_a_planted_violation(line, tmp_path):
    room, expected = PLANTED[line]
    root = plant(tmp_path, {f"{room}/x.py": f"import math\n{line}\n"})
    assert violations(root) == [expected]


def test_the_checker_lets_pass_what_runs_downward(tmp_path):
    lines = "from ..solve import armijo\nfrom ..reduce import Local\nfrom .y import z\nimport torch.optim\n"
    root = plant(tmp_path, {"optim/x.py": lines, "study/x.py": "from .. import __version__\nfrom ..optim import x\n"})
    assert violations(root) == []


def test_a_module_of_no_layer_is_found(tmp_path):
    assert violations(plant(tmp_path, {"helpers.py": ""})) == ["latephase.helpers belongs to no layer"]


@pytest.mark.parametrize(("files", "found"), [
    ({"study/x.py": "from .y import z", "study/y.py": "import torch.nn"}, True),
    ({"study/x.py": "from . import y", "study/y.py": "from ..reduce import R", "reduce.py": "import torch"}, True),
    ({"study/x.py": "", "__init__.py": "from .objective import O", "objective.py": "from torch import nn"}, True),
    ({"study/x.py": "def f():\n    import torch"}, False),
    ({"study/x.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"}, False),
    ({"study/x.py": "if 1:\n    try:\n        import torch\n    except ImportError:\n        pass"}, True),
])  # fmt: skip
def test_the_way_to_torch_is_found(files, found, tmp_path):
    assert (path_to(plant(tmp_path, files), "latephase.study.x", "torch") is not None) == found


def plant(folder: Path, files: dict[str, str]) -> Path:
    root = folder / "latephase"
    for room in ("cli", "study", "problems", "optim", "curvature", "solve"):
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").write_text("")
    for name in ("__init__", "objective", "parameters", "reduce"):
        (root / f"{name}.py").write_text("")
    for name, text in files.items():
        (root / name).write_text(text)
    return root
