"""The reading of TOML files, and their checksum. Nothing here imports torch."""

import os
import re
import tomllib
import zlib
from dataclasses import dataclass
from typing import Any

from .reading_files import DamagedFile, read_text

_SEALED = re.compile(r"# check ([0-9a-f]{8})\n$")


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
    found = _SEALED.search(text)
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
