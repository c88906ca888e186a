"""The reading of journals of JSON lines, and the checksums of their rows.

A row's checksum is of its own text and of all rows before it since its attempt began, so that a row that was changed,
lost, doubled or moved is noticed at the next one; that the last ones are lost tells the end record (see `Journaled`).
Nothing here imports torch.
"""

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .reading_files import CHECK, LARGEST, DamagedFile, open_regular
from .strict_json import parse

_SEALED = re.compile(rb', "check": "([0-9a-f]{8})"\}$')


@dataclass(frozen=True)
class Journaled:
    """What a journal's last attempt holds.

    Attributes:
        rows: Of the attempt, in the order written.
        of: Which journal its start says that it is, "FOLDER/FILE"; empty where it does not say.
        check: The checksum of its last row; empty where rows have none, as in earlier versions.
        lines: How many rows there are, the start included.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    of: str = ""
    check: str = ""
    lines: int = 0

    @property
    def end(self) -> dict[str, Any]:
        """What an end record says of the journal, by which a reader sees that rows are lost."""
        return {"rows": self.lines, "check": self.check}


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the rows of the last attempt from an append-only journal of JSON lines.

    Each attempt begins with a row ``{"event": "start", ...}``; earlier attempts do not count. A last line that was torn
    by a crash, and so has no end, is skipped.

    Args:
        path: The journal. It need not exist.

    Returns:
        The rows after the last start, in the order written, without their checksums; an empty list where there is no
        journal.

    Raises:
        DamagedFile: A whole line is not a row as it was written, so the file is damaged and not merely torn.
    """
    return read_attempt(path).rows


def read_attempt(path: str | os.PathLike[str]) -> Journaled:
    """Read the last attempt of a journal, as `read_journal`; one without rows where there is no journal."""
    name = "/".join(Path(path).absolute().parts[-2:])
    rows: list[dict[str, Any]] = []
    of, check, running, lines = "", "", 0, 0
    sealed: bool | None = None
    for number, line in enumerate(_lines(path), start=1):
        found = _SEALED.search(line)
        if sealed is not None and sealed != (found is not None):
            raise DamagedFile(path, f"line {number}: it has {'no' if sealed else 'a'} checksum, unlike those before")
        sealed = found is not None
        body = line[: found.start()] + b"}" if found else line
        row = _row(path, number, body)
        if row.get("event") == "start":
            rows, running, lines, of = [], 0, 0, str(row.get("of", ""))
            if of and of != name:
                raise DamagedFile(path, f"line {number}: it is the journal {of}, not {name}")
        else:
            rows.append(row)
        lines, running = lines + 1, zlib.crc32(body, running)
        check = f"{running:08x}" if sealed else ""
        if found and found.group(1).decode() != check:
            raise DamagedFile(path, f"line {number}: its checksum is another: it was changed, or a row before it lost")
    return Journaled(rows, of, check, lines)


def _row(path: str | os.PathLike[str], number: int, line: bytes) -> dict[str, Any]:
    try:
        row = parse(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DamagedFile(path, f"line {number}: not UTF-8") from error
    except ValueError as error:
        raise DamagedFile(path, f"line {number}: {error}") from error
    if not isinstance(row, dict):
        raise DamagedFile(path, f"line {number}: not a JSON object")
    return row


def _lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The whole lines of a file, without their ends."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(LARGEST):
            if len(line) == LARGEST:
                raise DamagedFile(path, f"a line of more than {LARGEST:,} bytes")
            if not line.endswith(b"\n"):  # what follows the last line's end: nothing, or a torn line
                return
            yield line[:-1]


def sealed_line(row: str, running: int) -> tuple[str, int]:
    """A row of a journal with its checksum and its end, and the checksum to go on with.

    Args:
        row: A JSON object in one line.
        running: The checksum of the rows before it; 0 for the start of an attempt.
    """
    running = zlib.crc32(row.encode(), running)
    return f'{row[:-1]}, "{CHECK}": "{running:08x}"}}\n', running
