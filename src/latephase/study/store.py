"""The files of a study: append-only journals, JSON records, atomic writes. Imports no torch."""

import errno
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..strict_json import finite


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the rows of the last attempt from an append-only journal of JSON lines.

    Each attempt begins with a row ``{"event": "start", ...}``; earlier attempts do not count. A last line that was torn
    by a crash, and so has no end, is skipped.

    Args:
        path: The journal. It need not exist.

    Returns:
        The rows after the last start, in the order written; an empty list where there is no journal.

    Raises:
        ValueError: A whole line is not a JSON object, so the file is damaged and not merely torn.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # what follows the last line's end: nothing, or a torn line
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object")
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

    Raises:
        ValueError: the file is damaged.
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} is damaged: not a JSON object")
    return table


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
        path: The journal; its folder is made where it is missing. A line torn by a crash is removed first.
        kept: Rows that this attempt takes over; written with its start in one piece.
    """

    def __init__(self, path: str | os.PathLike[str], kept: Sequence[dict[str, Any]] = ()):
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
        self._append([{"event": "start", "attempt": self.attempt}, *kept])

    def write(self, event: str, **fields: Any) -> None:
        """Append one row; numbers that are not finite become null."""
        self._append([{"event": event} | fields])

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        self._file.write("".join(json.dumps(finite(row), allow_nan=False) + "\n" for row in rows))
        self._file.flush()

    def close(self) -> None:
        """Write the rows through to the disk and close the file."""
        with self._file:
            os.fsync(self._file.fileno())


def write_json(path: str | os.PathLike[str], table: dict[str, Any]) -> None:
    """Write one JSON object, old or new content being seen whole; numbers that are not finite become null."""
    write_text_atomic(path, json.dumps(finite(table), indent=2, allow_nan=False) + "\n")


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room: the disk is full, or a quota or a limit of file sizes is reached."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def set_aside(path: str | os.PathLike[str]) -> Path | None:
    """Rename a damaged file, so that it is made anew and what it held can still be looked at.

    Returns:
        The new name, `NAME.damaged` or with a number behind it; None where there is no such file.
    """
    path = Path(path)
    if not path.exists():
        return None
    aside, number = path.with_name(f"{path.name}.damaged"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(aside)
    return aside


def read_or_set_aside(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read one JSON object; a damaged file is set aside and counts as missing."""
    try:
        return read_json(path)
    except ValueError:
        set_aside(path)
        return None
