"""The error of all data files, and the words that it needs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .catalogue import DataFile


class DataError(RuntimeError):
    """A data file is missing, cannot be downloaded or is not what was published; says where and what to do.

    A RuntimeError, as the library's other errors of a run are, and not an OSError: it tells of a damaged file as well
    as of a missing one, may name several places and addresses, and has no single error number.
    """


@contextmanager
def reading(file: DataFile, path: Path) -> Iterator[None]:
    """Turn whatever fails while a file is read into a `DataError` that names it and says what to do.

    Args:
        file: what the file should be.
        path: where it is. A ValueError raised inside is expected to name it.

    Raises:
        DataError: on OSError or ValueError inside.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. {_replace(file)}") from error
    except ValueError as error:
        raise DataError(f"{error}. {_replace(file)}") from error


def _replace(file: DataFile) -> str:
    published = f"the published file of {file.size:,} bytes"
    addresses = " or ".join(file.download.urls)
    source = f"to be found in {addresses}" if file.download.archive else f"from {addresses}"
    return f"Put {published} in its place ({source}), or delete it to have it downloaded."


def is_there(path: Path) -> bool:
    """Whether there is anything at a path. What cannot be looked at counts: reading it tells why."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
