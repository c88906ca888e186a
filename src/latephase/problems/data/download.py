"""Downloads into the cache: checked, complete or not there at all, by one process at a time."""

import logging
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import pooch
from filelock import FileLock
from requests import HTTPError

from .catalogue import DataFile, DataSet, Download
from .errors import is_there

PAUSES = (0.0, 0.3, 1.0)
"""Seconds before each round of attempts over the addresses: three rounds, for connections that break."""
TIMEOUTS = (10, 60)
"""Seconds to connect, and without a byte arriving, after which an attempt has failed."""
PIECE = 1 << 18
"""Bytes written at a time."""
MOST_MEMBERS = 1000
"""Entries of an archive that are looked at; the published ones have nine at most."""

_logger = logging.getLogger(__name__)


def download(data: DataSet, absent: list[DataFile], cache: Path) -> None:
    """Download what is missing of a data set into the cache.

    A file appears under its name only when it is complete and its checksum is right; all members of an archive are
    unpacked before the first appears. Whatever a process left behind that was killed is cleared away by the next.

    Args:
        data: The data set.
        absent: Its files that are not in the cache.
        cache: The folder to download into; made if need be.

    Raises:
        OSError: the cache cannot be written, or no address could be reached; says of each why.
        ValueError: an archive is not as published.
    """
    for source in dict.fromkeys(file.download for file in absent):
        files = [file for file in data.files if file.download == source]
        name = files[0].path.replace("/", "-")
        incoming = cache / ".incoming"
        incoming.mkdir(parents=True, exist_ok=True)
        with FileLock(incoming / f"{name}.lock"):
            left = [file for file in files if not is_there(cache / file.path)]
            if left:
                with _emptied(incoming / name) as work:
                    _fetch(source, left, work, cache)


@contextmanager
def _emptied(work: Path) -> Iterator[Path]:
    """A folder that is empty at first and gone at the end."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch(source: Download, files: list[DataFile], work: Path, cache: Path) -> None:
    """Download one source into the work folder, then move its files to their places in the cache."""
    whole = _retrieve(source, work)
    ready = _unpack(whole, files, work) if source.archive else [whole]
    for file, path in zip(files, ready, strict=True):
        target = cache / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(0o644)  # temporary files are made for their owner alone, but a cache may be shared
        path.replace(target)


def _retrieve(source: Download, work: Path) -> Path:
    """One complete file with the right checksum, from the first address that has it.

    Raises:
        OSError: none had; says of each why.
    """
    reasons = dict.fromkeys(source.urls, "")
    hopeless: set[str] = set()
    pooch.get_logger().setLevel("WARNING")
    for pause in PAUSES:
        time.sleep(pause if len(hopeless) < len(reasons) else 0)
        for url in [url for url in source.urls if url not in hopeless]:
            _logger.info("downloading %s (%d bytes)", url, source.size)
            try:
                bounded = cast(
                    Any, _AtMost(source.size)
                )  # the protocol's argument names are not those pooch calls with
                return Path(pooch.retrieve(url, source.checksum, "download", work, downloader=bounded))
            except (OSError, ValueError) as error:
                reasons[url] = _reason(error)
                if _is_final(error):
                    hopeless.add(url)
    raise OSError("; ".join(f"{url}: {reason}" for url, reason in reasons.items()))


def _reason(error: Exception) -> str:
    """What went wrong, without the layers that the connection's libraries wrap it in."""
    innermost = getattr(error.args[0], "reason", error) if error.args else error
    return " ".join(str(innermost).split()) or type(error).__name__


def _is_final(error: Exception) -> bool:
    """Whether the same request would fail again: another content than published, or a refusal."""
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code < 500
    return isinstance(error, ValueError)


class _AtMost:
    """A downloader for pooch that stops a server which sends more than was published."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.http = pooch.HTTPDownloader(
            chunk_size=PIECE,
            timeout=TIMEOUTS,
            headers={"Accept-Encoding": "identity"},  # a .gz file is wanted as it is
        )

    def __call__(self, url: str, output_file: str | os.PathLike[str], pooch: Any, check_only: bool = False) -> None:
        with open(output_file, "wb") as file:
            self.http(url, _Bounded(file, self.size), pooch)


class _Bounded:
    """A file open for writing that takes so many bytes and no more."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size, self.left = file, size, size

    def write(self, piece: bytes) -> int:
        self.left -= len(piece)
        if self.left < 0:
            raise ValueError(f"more than the published {self.size:,} bytes were sent")
        return self.file.write(piece)

    def flush(self) -> None:
        self.file.flush()


def _unpack(archive: Path, files: list[DataFile], work: Path) -> list[Path]:
    """Unpack members of a .tar.gz, and only these, under names of our own.

    Raises:
        ValueError: it is damaged, or lacks one of them as a plain file of the published size.
    """
    targets = {file.path: (file, work / f"member-{number}") for number, file in enumerate(files)}
    found: set[str] = set()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in islice(tar, MOST_MEMBERS):
                name = member.name.removeprefix("./")
                if name not in targets or name in found:
                    continue
                file, target = targets[name]
                content = tar.extractfile(member) if member.isreg() and member.size == file.size else None
                if content is None:
                    raise ValueError(f"{name} in the archive is not a file of {file.size:,} bytes")
                with content, target.open("wb") as out:
                    shutil.copyfileobj(content, out, PIECE)
                found.add(name)
                if len(found) == len(targets):
                    break
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"the archive is damaged: {error}") from error
    if len(found) < len(targets):
        raise ValueError(f"the archive lacks {', '.join(name for name in targets if name not in found)}")
    return [work / f"member-{number}" for number in range(len(files))]
