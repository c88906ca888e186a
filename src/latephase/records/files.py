"""The writing of a study's files: append-only journals, JSON records, atomic writes. Imports no torch."""

import contextlib
import errno
import json
import os
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .journals import read_journal as read_journal
from .journals import sealed_line
from .reading_files import CHECK, DamagedFile, checksum, open_regular, read_record
from .reading_files import read_json as read_json
from .safe_text import without_passwords
from .strict_json import finite


class StudyFileError(OSError):
    """A file of a study cannot be written or read, for which no strategy is to blame; arguments as of any OSError."""


@contextlib.contextmanager
def using(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file where the system refuses it, and tell such an error from those of strategies.

    Raises:
        StudyFileError: it does.
    """
    try:
        yield
    except StudyFileError:
        raise
    except OSError as error:
        raise StudyFileError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


UNFINISHED = ".latephase-unfinished"
"""How the name of a file ends that `write_atomic` has not written to its end."""


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part.

    Args:
        path: The file; its folder is made where it is missing.
        content: The whole content.

    Raises:
        StudyFileError: it cannot be written; the old content stays.
    """
    path = Path(path)
    with using(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp's 0600 would hide results from colleagues
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the error that is under way says more
                Path(name).unlink(missing_ok=True)
            raise


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file as `write_atomic` does, as UTF-8 with line ends as they are."""
    write_atomic(path, text.encode("utf-8"))


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes had not written to its end; for a folder in which nobody else writes."""
    for path in directory.rglob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def _no_link(path: str, flags: int) -> int:
    """Open a file, and no other one that a link in its place leads to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


class Journal:
    """An append-only file of JSON lines, one attempt after the other; a written row survives the process.

    Every row ends with a checksum of itself and of those before it since the attempt began; see `files`.

    Args:
        path: The journal; its folder is made where it is missing. A line torn by a crash is removed first.
        kept: Rows that this attempt takes over. They are there together with its start or not at all: a start with a
            part of them would make the earlier attempt's rows count as lost.

    Raises:
        StudyFileError: it cannot be written; what it held stays. `write` and `close` raise it as well.
    """

    def __init__(self, path: str | os.PathLike[str], kept: Sequence[dict[str, Any]] = ()):
        self._path = path = Path(path)
        with using(path):
            old = b""
            if os.path.lexists(path):
                with open_regular(path) as file:
                    old = file.read()
        whole = old[: old.rfind(b"\n") + 1]  # the torn line goes: a journal holds whole rows only
        self.attempt = whole.count(b'{"event": "start"') + 1
        self._rows, self._running = 0, 0
        of = "/".join(path.absolute().parts[-2:])
        begun = self._lines([{"event": "start", "attempt": self.attempt, "of": of}, *kept])
        write_atomic(path, whole + begun.encode("utf-8"))
        with using(path):
            self._file = open(path, "a", encoding="utf-8", opener=_no_link)  # noqa: SIM115 (open as long as this is)

    def write(self, event: str, **fields: Any) -> None:
        """Append one row; numbers that are not finite become null."""
        self._append([{"event": event} | fields])

    def _lines(self, rows: Sequence[dict[str, Any]]) -> str:
        text, running = "", self._running
        for row in rows:
            line, running = sealed_line(json.dumps(finite(row), allow_nan=False), running)
            text += line
        self._rows, self._running = self._rows + len(rows), running
        return text

    @property
    def end(self) -> dict[str, Any]:
        """What the record of the end says of the journal, so that a reader sees whether rows are lost."""
        return {"rows": self._rows, CHECK: f"{self._running:08x}"}

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        with using(self._path):
            self._file.write(self._lines(rows))
            self._file.flush()

    def close(self) -> None:
        """Write the rows through to the disk and close the file."""
        with using(self._path), self._file:
            os.fsync(self._file.fileno())


def write_json(path: str | os.PathLike[str], table: dict[str, Any]) -> None:
    """Write one JSON object, old or new content being seen whole; numbers that are not finite become null.

    Its last key is a checksum of all others.
    """
    table = json.loads(json.dumps(finite(table), allow_nan=False))  # as it is read
    write_text_atomic(path, json.dumps(table | {CHECK: checksum(table)}, indent=2) + "\n")


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room: the disk is full, or a quota or a limit of file sizes is reached."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_ours(error: OSError) -> bool:
    """Whether an error stops the study and not only one run: a file of ours is refused, or the disk is full."""
    return isinstance(error, StudyFileError) or is_full(error)


def set_aside(path: str | os.PathLike[str]) -> Path | None:
    """Rename a damaged file, so that it is made anew and what it held can still be looked at.

    Returns:
        The new name, `NAME.damaged` or with a number behind it; None where there is no such file.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return None
    aside, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    with using(path):
        path.rename(aside)
    return aside


def set_aside_unless_file(path: str | os.PathLike[str]) -> Path | None:
    """Rename what stands where a file is to be written and is none: a folder, a link, a named pipe."""
    return None if Path(path).is_file() and not Path(path).is_symlink() else set_aside(path)


def read_or_set_aside(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read one JSON object; a file that is damaged, or has no checksum, is set aside and counts as missing."""
    try:
        record = read_record(path)
        if record is not None and not record.sealed:
            raise DamagedFile(path, "it has no checksum")
    except DamagedFile:
        set_aside(path)
        return None
    return None if record is None else record.table


def told(error: BaseException, folder: Path) -> str:
    """What a run's record says of the error that ended it; its traceback goes into `error.txt`, passwords nowhere."""
    text = without_passwords("".join(traceback.format_exception(error)))
    write_atomic(folder / "error.txt", text.encode("utf-8", "backslashreplace"))
    return without_passwords(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def warnings_into(path: Path) -> Iterator[None]:
    """Write warnings to a file, one after the other, in place of the terminal, where those of all runs would mix.

    Raises:
        StudyFileError: one could not be written. It is raised at the end: whoever warns may take any error for one of
            its own, and go on in another way.
    """
    refused: list[StudyFileError] = []

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        try:
            with using(path), open(path, "a", encoding="utf-8", errors="backslashreplace", opener=_no_link) as file:
                file.write(without_passwords(f"{category.__name__}: {message}\n"))
        except StudyFileError as error:
            refused.append(error)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
    if refused:
        raise refused[0]
