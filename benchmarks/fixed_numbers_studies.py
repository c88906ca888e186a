"""The study and the tuning of `fixed_numbers.py`, performed by the command and read from the files that it leaves."""

import contextlib
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fixed_numbers_cases import RENAMED

HERE = Path(__file__).parent
COMMAND = "from latephase.cli import app; app()"
LEFT_OUT = ("attempt", "check", "number")
"""Columns that say nothing of a result, beside those in seconds."""


def performed(what: str, directory: Path) -> None:
    """Let the command do a study or a tuning."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    file = HERE / f"fixed_numbers_{'study' if what == 'study' else 'tuning'}.toml"
    arguments = [sys.executable, "-c", COMMAND, what, str(file), "--out", str(directory)]
    done = subprocess.run(
        arguments, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"latephase {what} ended with {done.returncode}: {(done.stderr or done.stdout)[-300:]}")


def table(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Rows as a record: a column for each key but the times, None where a row has none."""
    rows = [{RENAMED.get(key, key): value for key, value in row.items()} for row in rows]
    names = list(dict.fromkeys(key for row in rows for key in row))
    names = [name for name in names if "seconds" not in name and name not in LEFT_OUT]
    return {"columns": {name: [_cell(row.get(name)) for row in rows] for name in names}, "end": {"rows": len(rows)}}


def _cell(value: Any) -> Any:
    """A cell of a journal, or of a CSV file, which has texts only."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value) if value.isdecimal() else float(value) if math.isfinite(float(value)) else value
    return " ".join(map(str, value)) if isinstance(value, list) else value


def journal(path: Path) -> list[dict[str, Any]]:
    """The rows of a training or a run, without those of the clock."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["event"] not in ("start", "clock")]


def scores(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def study() -> dict[str, dict[str, Any]]:
    """The rows of the training, of each strategy's run, and of the scores."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        performed("study", root)
        found = {"study-training": table(journal(root / "training" / "rows.jsonl"))}
        for path in sorted(root.glob("runs/*/rows.jsonl")):
            found[f"study-{path.parent.name.split('_')[1]}"] = table(journal(path))
        return found | {"study-scores": table(scores(root / "scores.csv"))}


def tuning() -> dict[str, dict[str, Any]]:
    """The trials, with what they tried."""
    with tempfile.TemporaryDirectory() as folder:
        performed("tune", Path(folder))
        return {"tuning-trials": table(scores(Path(folder) / "trials.csv"))}


RUNS: dict[str, Callable[[], dict[str, Any]]] = {"study": study, "tuning": tuning}
