"""Files in a folder that may be somebody else's: none outside it is read or written, and none can hang a reader."""

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import IO

FOLDERS = ("runs", "training", "figures", "workers", "training/checkpoints")
"""Folders within the folder of a study or a tuning; beside them, one for each run is within `runs`."""
IN_PLACE = ("tune.db*", ".lock*", "workers/*")
"""Files that others than us open, and so through links: a storage and locks."""


class Damaged(ValueError):
    """A file or a folder of results is not what was written; the message names it and says what to do."""


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file to read it, unless it is a link, or something that could hang a reader.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is no regular file, or cannot be read.
    """
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | _NO_LINK | _NO_WAITING
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _OF_A_LINK and Path(path).is_symlink():
            raise Damaged(f"{path} is damaged: it is a link, and what it leads to is none of these results") from error
        raise Damaged(f"{path} cannot be read: {error.strerror or error}") from error
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise Damaged(f"{path} is damaged: it is no regular file")
    return file


_NO_LINK, _NO_WAITING = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
"""A pipe without O_NONBLOCK would wait for a writer; systems without these have no such links or pipes."""
_OF_A_LINK = (errno.ELOOP, errno.EMLINK)


def open_to_append(path: str | os.PathLike[str]) -> IO[str]:
    """Open a file to append to it, or make it; one with several names is first made a file of its own.

    Raises:
        Damaged: it is a link, or no regular file.
        OSError: it cannot be written.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_nlink > 1:  # the same bytes under another name, perhaps elsewhere
                write_atomic(path, file.read())
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | _NO_LINK | _NO_WAITING
    return os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8", errors="backslashreplace", newline="")


def write_atomic(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old or the new content, never a part; a link is replaced, not followed.

    Args:
        path: the file; its folder is made where it is missing.
        content: the whole of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide results from colleagues
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def refuse_links(root: str | os.PathLike[str]) -> None:
    """Refuse a folder of results in which links lead out of it; that the folder itself is reached by one is fine.

    Single files that are links are the reader's to refuse, and are replaced by what is written.

    Raises:
        Damaged: a folder within is a link, or a file that others open is one or has a second name.
    """
    root = Path(root)
    within = [root / name for name in FOLDERS]
    if (root / "runs").is_dir():
        within += [Path(entry.path) for entry in os.scandir(root / "runs") if entry.is_symlink() or entry.is_dir()]
    for path in within:
        if path.is_symlink():
            raise Damaged(
                f"{path} is a link to {os.readlink(path)}: what is read and written there would lie outside {root}; "
                "put the folder itself in its place"
            )
    for path in (found for pattern in IN_PLACE for found in root.glob(pattern)):
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or (about.st_nlink > 1 and about.st_size):
            kind = "a link" if path.is_symlink() else "no file with one name only"
            raise Damaged(f"{path} is {kind}, so that a file outside {root} would be written; put a copy in its place")
