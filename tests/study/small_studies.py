"""Studies of the small problems, and what their folders hold."""

import json
import sys
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console

from latephase.records.files import read_journal
from latephase.study.config import Study, parse_study
from latephase.study.performing import conducting as conduct_module
from latephase.study.performing.conducting import conduct, resolve
from latephase.study.performing.progress import StudyProgress

HERE = Path(__file__).parent
DRIVER = [sys.executable, str(HERE / "study_process.py")]


def first_order(schedule: str = "constant", **changes: Any) -> dict[str, Any]:
    return {"kind": "first_order", "name": schedule, "label": schedule, "schedule": schedule} | changes


def hessian_free(**changes: Any) -> dict[str, Any]:
    table = {"kind": "hessian_free", "name": "hf", "label": "HF", "batch_size": 32, "evaluation_batch_size": 16}
    return table | {"options": {"solver": {"max_iter": 4}}} | changes


def custom(factory: str, name: str = "own", module: str = "small_strategies", **options: Any) -> dict[str, Any]:
    return {"kind": "custom", "name": name, "label": name, "factory": f"{module}:{factory}", "options": options}


def table(*strategies: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The table of a study: two checkpoints, two seeds, eight steps, four evaluations."""
    return {
        "name": "small",
        "problem": "small_problems:noisy",
        "seeds": [0, 1],
        "budget": {"unit": "steps", "amount": 8},
        "evaluations": 4,
        "checkpoints": [1, 3],
        "training": {"epochs": 4},
        "strategies": list(strategies or (first_order(), hessian_free())),
    } | changes


def study_of(*strategies: dict[str, Any], **changes: Any) -> Study:
    return resolve(parse_study(table(*strategies, **changes), "small"))


def toml_of(directory: Path, *strategies: dict[str, Any], **changes: Any) -> Path:
    path = directory / "small.toml"
    path.write_text(tomli_w.dumps(table(*strategies, **changes)), encoding="utf-8")
    return path


def performed(study: Study, directory: Path, monkeypatch: Any = None, **options: Any) -> list[str]:
    """Conduct a study; its report, which has tests of its own and takes seconds, is left out."""
    if monkeypatch is not None:
        monkeypatch.setattr(conduct_module, "write_report", lambda directory: directory / "report.html")
    with StudyProgress(Console(quiet=True)) as progress:
        return conduct(study, directory, progress, **options)[1]


def rows_of(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of every run."""
    return {path.parent.name: read_journal(path) for path in sorted(directory.glob("runs/*/rows.jsonl"))}


def training_rows_of(directory: Path) -> list[dict[str, Any]]:
    """The rows of the training without the clock's."""
    rows = read_journal(directory / "training" / "rows.jsonl")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def statuses_of(directory: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(directory.glob("runs/*/status.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def times_of(directory: Path) -> dict[str, int]:
    """When each run's rows were last written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in directory.glob("runs/*/rows.jsonl")}
