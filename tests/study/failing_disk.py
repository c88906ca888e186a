"""A disk that refuses to be written: real system calls of real processes, of which one, or all from one on, fail."""

import contextlib
import errno
import io
import multiprocessing
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from latephase.study.performing import processes

WRITES = ("mkdir", "replace", "rename", "fsync", "truncate")
"""Functions of `os` that change a file system, beside opening and writing."""


class FailingDisk:
    """Counts what is written below a folder, in this process and those forked from it, and refuses some of it.

    What is refused fails as the system would have it fail: of a write that finds no room, half is written first.

    Args:
        below: the folder.
        log: a file elsewhere that counts, a byte for each.
        at: which is refused, from 1 on; 0 for none.
        lasting: all that follow are refused as well, until the test ends, as by a disk that stays full.
        number: the error's.
    """

    def __init__(self, below: Path, log: Path, at: int = 0, lasting: bool = True, number: int = errno.ENOSPC):
        self.below, self.log, self.at, self.lasting, self.number = str(below), str(log), at, lasting, number
        self._open = os.open
        log.touch()

    @property
    def count(self) -> int:
        """How many there were."""
        return os.stat(self.log).st_size

    def refuses(self, path: Any) -> bool:
        """Count a call that writes, if it is below the folder; whether it is to fail."""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        if not os.fsdecode(path).startswith(self.below):
            return False
        handle = self._open(self.log, os.O_WRONLY | os.O_APPEND)
        os.write(handle, b".")
        os.close(handle)
        return 0 < self.at <= self.count if self.lasting else self.count == self.at

    def check(self, path: Any) -> None:
        """Count a call that writes.

        Raises:
            OSError: it is to fail.
        """
        if self.refuses(path):
            raise OSError(self.number, os.strerror(self.number), path if isinstance(path, str) else None)

    @contextlib.contextmanager
    def installed(self) -> Iterator["FailingDisk"]:
        """In place of the system's calls; workers are forked from this process, so that they have them too."""
        disk, plain = self, {name: getattr(os, name) for name in WRITES}

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                if disk.refuses(self.fileno()):
                    if disk.number == errno.ENOSPC and len(data) > 1:
                        super().write(bytes(data)[: len(data) // 2])
                    raise OSError(disk.number, os.strerror(disk.number))
                return super().write(data)

        def opened(path: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+"):
                return real_open(path, mode, buffering, *arguments, **options)
            if isinstance(path, (str, os.PathLike)):
                disk.check(os.fspath(path))
            encoding, newline = options.get("encoding"), options.get("newline")
            raw = Raw(path, mode.replace("b", "").replace("t", ""))
            buffered = io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", newline=newline)

        def opened_low(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if flags & os.O_CREAT and not os.path.exists(path):
                disk.check(os.fspath(path))
            return disk._open(path, flags, *arguments, **options)

        real_open = io.open
        fork = multiprocessing.get_context("fork")
        with contextlib.ExitStack() as patches:
            for name in WRITES:
                patches.enter_context(mock.patch.object(os, name, _checked(disk, name, plain[name])))
            patches.enter_context(mock.patch.object(os, "open", opened_low))
            patches.enter_context(mock.patch.object(io, "open", opened))
            patches.enter_context(mock.patch("builtins.open", opened))
            patches.enter_context(mock.patch.object(processes.multiprocessing, "get_context", return_value=fork))
            patches.enter_context(warnings.catch_warnings())
            warnings.simplefilter("default")  # those of this process, which workers are forked with, are errors
            yield self


def _checked(disk: FailingDisk, name: str, call: Any) -> Any:
    def checked(path: Any, *arguments: Any, **options: Any) -> Any:
        if name != "mkdir" or not os.path.exists(path):  # a folder that is there is not written
            disk.check(path if isinstance(path, int) else os.fspath(path))
        return call(path, *arguments, **options)

    return checked
