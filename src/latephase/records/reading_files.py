"""The reading of a study's files: whatever lies there is read whole and as it was written, or named as damaged.

Records carry checksums of their values; for rows see `journals`, for TOML `toml_files`. Nothing here waits, follows
links, or imports torch.
"""

import errno
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .strict_json import canonical, parse

CHECK = "check"
"""The last key of a record and of a row: eight hexadecimal digits of a CRC-32."""
LARGEST = 2**24
"""Bytes of a record or of one row; ours have no more than some thousand."""

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
