"""The reading of a study's files: whatever lies there is read whole and as it was written, or named as damaged.

Rows and records carry checksums. A record's is of its values. A row's is of its own text and of all rows before it
since its attempt began, so that a row that was changed, lost, doubled or moved is noticed at the next one; that the
last ones are lost tells the end record (see `Journaled`). Nothing here waits, follows links, or imports torch.
"""

import errno
import os
import re
import stat
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from .strict_json import canonical, parse

CHECK = "check"
"""The last key of a record and of a row: eight hexadecimal digits of a CRC-32."""
LARGEST = 2**24
"""Bytes of a record or of one row; ours have no more than some thousand."""

_SEALED = re.compile(rb', "check": "([0-9a-f]{8})"\}$')
_SEALED_TOML = re.compile(r"# check ([0-9a-f]{8})\n$")
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


class ResultsError(ValueError):
    """The results of a study cannot be read, or not yet; the message names the file and says what to do."""


class DamagedFile(ResultsError):
    """A file does not hold what was written into it.

    Attributes:
        path: The file.
        problem: What is wrong with it, without its name.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str):
        super().__init__(f"{path}, {problem}" if problem.startswith("line ") else f"{path} is damaged: {problem}")
        self.path, self.problem = Path(path), problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.problem)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to be read, without waiting for what is not one.

    Raises:
        FileNotFoundError: There is none.
        DamagedFile: It is a link, a folder, a named pipe or a device, or what should be its folder is not one.
        OSError: It cannot be read, above all for want of permission.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise DamagedFile(path, "a symbolic link, and links are not followed") from error
        if error.errno == errno.ENOTDIR:
            raise DamagedFile(path, "what should be its folder is not one") from error
        if error.errno == errno.ENXIO:
            raise DamagedFile(path, "a socket, not a file") from error
        raise
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = next((name for test, name in _KINDS.items() if test(mode)), "something else")
        raise DamagedFile(path, f"{kind}, not a file")
    return os.fdopen(handle, "rb")


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file of UTF-8.

    Raises:
        FileNotFoundError: There is none.
        DamagedFile: It is no file, too large, or not UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise DamagedFile(path, f"larger than {LARGEST:,} bytes")
    return _decoded(path, content)


def _decoded(path: str | os.PathLike[str], content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFile(path, f"not UTF-8 at byte {error.start}") from error


@dataclass(frozen=True)
class Record:
    """A JSON object, and whether it had a checksum, which then was right; records of earlier versions had none."""

    table: dict[str, Any]
    sealed: bool


def read_record(path: str | os.PathLike[str]) -> Record | None:
    """Read one JSON object with its checksum, where it has one; None where there is no such file.

    Raises:
        DamagedFile: It is not as it was written.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return None
    try:
        table = parse(text)
    except ValueError as error:
        raise DamagedFile(path, "an empty file" if not text.strip() else str(error)) from error
    if not isinstance(table, dict):
        raise DamagedFile(path, "not a JSON object")
    check = table.pop(CHECK, None)
    if check is not None and check != checksum(table):
        raise DamagedFile(path, "its checksum is another: a value was changed")
    return Record(table, check is not None)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read one JSON object, without its checksum.

    Args:
        path: The file. It need not exist.

    Returns:
        The object, or None where there is no such file.

    Raises:
        DamagedFile: the file is damaged.
    """
    record = read_record(path)
    return None if record is None else record.table


def checksum(table: dict[str, Any]) -> str:
    """The checksum of a record's values, whatever its layout."""
    return f"{zlib.crc32(canonical(table).encode()):08x}"


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


def sealed_toml(text: str) -> str:
    """A TOML text with its checksum in a comment, its last line."""
    return f"{text}# check {zlib.crc32(text.encode()):08x}\n"


@dataclass(frozen=True)
class Toml:
    """A TOML file: its text without the checksum, its table, and whether it had a checksum."""

    text: str
    table: dict[str, Any]
    sealed: bool


def read_toml(path: str | os.PathLike[str]) -> Toml:
    """Read a TOML file with its checksum, where it has one.

    Raises:
        FileNotFoundError: There is none.
        DamagedFile: It is not as it was written.
    """
    text = read_text(path)
    found = _SEALED_TOML.search(text)
    body = text[: found.start()] if found else text
    if found and f"{zlib.crc32(body.encode()):08x}" != found.group(1):
        raise DamagedFile(path, "its checksum is another: it was changed")
    return Toml(body, parse_toml(body, path), found is not None)


def parse_toml(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The table of a TOML text; `path` names it in errors.

    Raises:
        DamagedFile: It is not TOML, nested without end, or has numbers longer than 64 bits.
    """
    try:
        table = tomllib.loads(text.replace("\r\n", "\n"))
        if (number := _longest(table)) >= 2**64:
            raise ValueError(f"a whole number of {number.bit_length()} bits")
    except RecursionError:
        raise DamagedFile(path, "nested too deeply") from None
    except ValueError as error:  # of tomllib, and of numbers with thousands of digits
        raise DamagedFile(path, str(error)) from error
    return table


def _longest(value: Any) -> int:
    """The largest whole number in a value, without its sign."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return max(map(_longest, value), default=0)
    return abs(value) if isinstance(value, int) else 0
