"""The files of a study: append-only journals, JSON records, atomic writes. Imports no torch."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ..strict_json import finite


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the rows of the last attempt from an append-only journal of JSON lines.

    Each attempt begins with a row ``{"event": "start", ...}``; earlier attempts do not count. A last line that was torn
    by a crash is skipped.

    Args:
        path: The journal. It need not exist.

    Returns:
        The rows after the last start, in the order written; an empty list where there is no journal.

    Raises:
        ValueError: A line other than the last is not JSON, so the file is damaged and not merely torn.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if row.get("event") == "start":
            rows.clear()
        else:
            rows.append(row)
    return rows


def read_json(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read one JSON object.

    Args:
        path: The file. It need not exist.

    Returns:
        The object, or None where there is no such file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return json.loads(text)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never a part.

    Args:
        path: The file; its folder is made where it is missing.
        text: The whole content, written as UTF-8 with line ends as they are.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide results from colleagues
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Journal:
    """An append-only file of JSON lines, one attempt after the other; a written row survives the process.

    Args:
        path: The journal; its folder is made where it is missing. A line torn by a crash is closed first.
    """

    def __init__(self, path: str | os.PathLike[str]):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        attempts, torn = 0, False
        if path.exists():
            text = path.read_bytes()
            attempts, torn = text.count(b'{"event": "start"'), bool(text) and not text.endswith(b"\n")
            if torn:  # the torn line goes: a journal holds whole rows only
                os.truncate(path, text.rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")
        self.attempt = attempts + 1
        self.write("start", attempt=self.attempt)

    def write(self, event: str, **fields: Any) -> None:
        """Append one row; numbers that are not finite become null."""
        row = {"event": event} | finite(fields)
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Write the rows through to the disk and close the file."""
        os.fsync(self._file.fileno())
        self._file.close()


def write_json(path: str | os.PathLike[str], table: dict[str, Any]) -> None:
    """Write one JSON object, old or new content being seen whole; numbers that are not finite become null."""
    write_text_atomic(path, json.dumps(finite(table), indent=2, allow_nan=False) + "\n")
