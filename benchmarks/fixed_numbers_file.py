"""The file of `fixed_numbers.py`: what it holds of each case, and of the machine."""

import contextlib
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Table = dict[str, list[Any]]
"""Columns by name, an entry for each row: numbers, texts, True, False or None."""
Records = dict[str, dict[str, Any]]
"""Of each case "columns", a `Table`, and "end", what is there after the last step."""

KEPT = 20
"""Rows of a case that are kept in full; of those after them every tenth, and a hash of all."""


def environment() -> dict[str, Any]:
    """What decides in which order numbers are added."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        return _software() | {"processor": model}
    return _software() | {"processor": platform.processor() or platform.machine()}


def _software() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def kept(rows: int) -> list[int]:
    """The rows of a case that the file has."""
    return [row for row in range(rows) if row < KEPT or row % 10 == 9]


def everything(columns: Table, names: Sequence[str]) -> str:
    """A hash of all rows in the named columns."""
    text = repr([(name, columns[name]) for name in sorted(names)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def packed(columns: Table, rows: int) -> dict[str, Any]:
    """The rows to keep, in little space: one entry for a constant, the name alone of a column that is there already."""
    found: dict[str, Any] = {}
    for name, column in columns.items():
        twin = next((other for other in found if repr(columns[other]) == repr(column)), None)
        few = [column[row] for row in kept(rows)]
        if len({repr(entry) for entry in few}) == 1:
            found[name] = few[0]
        else:
            found[name] = few if twin is None else {"same_as": twin}
    return found


def unpacked(columns: Mapping[str, Any], rows: int) -> Table:
    """What `packed` made small: the kept rows."""
    found: Table = {}
    for name, column in columns.items():
        same = found[column["same_as"]] if isinstance(column, dict) else column
        found[name] = same if isinstance(same, list) else [same] * len(kept(rows))
    return found


def write(path: Path, records: Records) -> None:
    """Write the file."""
    lines = []
    for name, record in records.items():
        columns, end = record["columns"], record["end"]
        case = {"end": end | {"everything": everything(columns, list(columns))}}
        case["columns"] = packed(columns, end["rows"])
        lines.append(f"{json.dumps(name)}: {json.dumps(case, separators=(',', ':'))}")
    head = json.dumps(environment())
    path.write_text(f'{{"environment": {head},\n"cases": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


def read(path: Path) -> tuple[dict[str, Any], Records]:
    """The environment and the records of a file, with the rows that are kept."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for case in content["cases"].values():
        case["columns"] = unpacked(case["columns"], case["end"]["rows"])
    return content["environment"], content["cases"]
