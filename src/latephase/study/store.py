"""The files of a study: append-only journals, JSON records, atomic writes. Imports no torch."""

import contextlib
import errno
import json
import os
import traceback
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..files import Damaged, open_regular, open_to_append, write_atomic
from ..strict_json import finite
from ..visible import without_passwords

LARGEST = 1e308
"""A number beyond this is no measure of anything, and no float."""


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a regular file; what could hang a reader, or is something else, is refused.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is no regular file, or no text, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"{path} is damaged: not text in UTF-8 ({error.reason})") from error


def parsed(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has a number that no float can hold.
    """
    try:
        return json.loads(text, parse_int=_integer, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) < 400 else None
    if value is None or abs(value) > LARGEST:
        raise ValueError(f"a number of {len(digits)} digits")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the rows of the last attempt from an append-only journal of JSON lines.

    Each attempt begins with a row ``{"event": "start", ...}``; earlier attempts do not count. A last line that was torn
    by a crash, and so has no end, is skipped.

    Args:
        path: The journal. It need not exist.

    Returns:
        The rows after the last start, in the order written; an empty list where there is no journal.

    Raises:
        Damaged: The file is damaged and not merely torn: a whole line is not a JSON object, or a row is not the one
            that was written after the row before it.
    """
    return read_chained(path)[0]


def read_chained(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int | None]:
    """The rows of `read_journal`, and the sum that the last of them carries; None where they carry none."""
    try:
        lines = read_text(path).split("\n")
    except FileNotFoundError:
        return [], None
    rows: list[dict[str, Any]] = []
    chain: int | None = None
    for number, line in enumerate(lines, start=1):
        if number == len(lines):  # what follows the last line's end: nothing, or a torn line
            break
        try:
            row = parsed(line)
        except ValueError as error:
            raise Damaged(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise Damaged(f"{path}, line {number}: not a JSON object")
        said = row.pop(CHAIN, None)
        starts = row.get("event") == "start"
        if (said is None) != (chain is None) and not starts:
            raise Damaged(f"{path}, line {number}: a row without its checksum, or with one that others lack")
        if said is not None and said != chained(row, 0 if starts else chain or 0):
            raise Damaged(f"{path}, line {number}: changed since it was written, or rows before it are missing")
        chain = said
        if starts:
            rows.clear()
        else:
            rows.append(row)
    return rows, chain


CHAIN = "chain"
"""The field of a journal's row with the checksum of it and of all rows of its attempt before it."""


def chained(row: dict[str, Any], before: int) -> int:
    """The checksum of a row and of those before it."""
    return zlib.crc32(json.dumps(row, allow_nan=False).encode(), before)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read one JSON object.

    Args:
        path: The file. It need not exist.

    Returns:
        The object, or None where there is no such file.

    Raises:
        Damaged: the file is damaged.
    """
    try:
        table = parsed(read_text(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise error if isinstance(error, Damaged) else Damaged(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(table, dict):
        raise Damaged(f"{path} is damaged: not a JSON object")
    return table


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never a part.

    Args:
        path: The file; its folder is made where it is missing.
        text: The whole content, written as UTF-8 with line ends as they are.
    """
    write_atomic(path, text.encode("utf-8"))


class Journal:
    """An append-only file of JSON lines, one attempt after the other; a written row survives the process.

    Args:
        path: The journal; its folder is made where it is missing. A line torn by a crash is removed first.
        kept: Rows that this attempt takes over; written with its start in one piece.

    Attributes:
        attempt: number of this attempt, from one.
        chain: checksum of the rows of this attempt, which the record of its end repeats.
    """

    def __init__(self, path: str | os.PathLike[str], kept: Sequence[dict[str, Any]] = ()):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        text = b""
        try:
            with open_regular(path) as file:
                text = file.read()
        except FileNotFoundError:
            pass
        except Damaged:  # a link, or what could hang us
            set_aside(path)
        self._file = open_to_append(path)
        if text and not text.endswith(b"\n"):  # the torn line goes: a journal holds whole rows only
            self._file.truncate(text.rfind(b"\n") + 1)
        self.attempt, self.chain = text.count(b'{"event": "start"') + 1, 0
        self._append([{"event": "start", "attempt": self.attempt}, *kept])

    def write(self, event: str, **fields: Any) -> None:
        """Append one row; numbers that are not finite become null."""
        self._append([{"event": event} | fields])

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        lines, chain = [], self.chain
        for row in rows:
            row = finite({key: value for key, value in row.items() if key != CHAIN})
            chain = chained(row, chain)
            lines.append(json.dumps(row | {CHAIN: chain}, allow_nan=False) + "\n")
        self._file.write("".join(lines))
        self._file.flush()
        self.chain = chain

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
    if not path.is_symlink() and not path.exists():
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


def told(error: BaseException, folder: Path) -> str:
    """What a run's record says of the error that ended it; the traceback goes into `error.txt`, passwords nowhere."""
    text = without_passwords("".join(traceback.format_exception(error)))
    write_atomic(folder / "error.txt", text.encode("utf-8", "backslashreplace"))
    return without_passwords(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def warnings_into(path: Path) -> Iterator[None]:
    """Write warnings to a file, one after the other, in place of the terminal, where those of all runs would mix."""
    path.unlink(missing_ok=True)

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        with open_to_append(path) as file:
            file.write(without_passwords(f"{category.__name__}: {message}\n"))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
