"""Where data files lie: in the user's data folder, in the cache, or nowhere yet."""

import os
from dataclasses import dataclass
from pathlib import Path

from .catalogue import DataFile, DataSet, data_set
from .errors import DataError, is_there

NAMED = 2
"""How many of several missing files a message names; `missing` lists them all."""


@dataclass(frozen=True)
class MissingFile:
    """A file that would have to be downloaded.

    Attributes:
        dataset: Name of its data set.
        path: Where it belongs in a data folder.
        places: Where it was looked for.
        size: In bytes, as published.
        urls: Where it, or the archive that it is in, can be downloaded.
        download_size: Bytes of that download.
    """

    dataset: str
    path: str
    places: tuple[Path, ...]
    size: int
    urls: tuple[str, ...]
    download_size: int

    def __str__(self) -> str:
        places = " and ".join(map(str, self.places))
        return f"{self.path} ({self.size:,} bytes): not at {places}; published at {' and '.join(self.urls)}"


def cache_folder() -> Path:
    """Where downloads are kept: LATEPHASE_CACHE, or else the user's cache of this library (~/.cache/latephase)."""
    named = os.environ.get("LATEPHASE_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    import pooch  # reading files that are there needs none of what downloads need

    return pooch.os_cache("latephase")


def data_folder() -> Path | None:
    """The folder of LATEPHASE_DATA, in which the user keeps data files; None if it is not set."""
    named = os.environ.get("LATEPHASE_DATA")
    return Path(named).expanduser().absolute() if named else None


def missing(dataset: str, rows: int | None = None) -> list[MissingFile]:
    """List what of a data set would have to be downloaded, without downloading it.

    Args:
        dataset: Its name, as in `DATA_SETS`.
        rows: How many training rows are wanted, where the reader takes that; leading files may be enough for them.
            Default: all.

    Returns:
        The files that are missing where fewest are: in the folder of LATEPHASE_DATA or in the cache. A data set is read
        from one of the two, never from both. Empty if it is complete.

    Raises:
        ValueError: there is no such data set, or it has fewer rows.
    """
    data = data_set(dataset)
    absent = min((_absent(data.needed(rows), folder) for folder in _folders()), key=len)
    return [
        MissingFile(
            dataset,
            file.path,
            tuple(folder / place for folder in _folders() for place in (file.path, *file.also)),
            file.size,
            file.download.urls,
            file.download.size,
        )
        for file in absent
    ]


def locate(data: DataSet, rows: int | None = None) -> list[tuple[DataFile, Path]]:
    """Find the files of a data set, downloading into the cache what is missing.

    They are all taken from one folder: rows chosen by somebody in one must not be mixed with published ones in another.

    Args:
        data: The data set.
        rows: How many training rows are wanted. Default: all.

    Returns:
        What is needed, and where it is. What is there is not looked into.

    Raises:
        DataError: LATEPHASE_DATA is not a folder, or files are missing and could not be downloaded.
        ValueError: the data set has fewer rows.
    """
    files, folder = data.needed(rows), data_folder()
    if folder is not None and (not is_there(folder) or folder.is_file()):
        raise DataError(f"LATEPHASE_DATA is {folder}, which is not a folder: correct it, or unset it")
    if folder is None or _absent(files, folder):
        folder = cache_folder()
        if absent := _absent(files, folder):
            _download(data, absent, files)
    return [(file, _place(file, folder)) for file in files]


def _download(data: DataSet, absent: list[DataFile], files: tuple[DataFile, ...]) -> None:
    from .download import download

    folder, cache = data_folder(), cache_folder()
    try:
        download(data, absent, cache)
    except (OSError, ValueError) as error:
        own = "LATEPHASE_DATA is not set" if folder is None else _lacking(folder, files)
        raise DataError(
            f"{data.name} is not complete: {own}; {_lacking(cache, files)}. A download failed: {error}. "
            f"{_by_hand(absent[0], cache)}"
        ) from error


def _lacking(folder: Path, files: tuple[DataFile, ...]) -> str:
    absent = [f"{file.path} ({file.size:,} bytes)" for file in _absent(files, folder)]
    return f"{folder} lacks {', '.join(absent[:NAMED])}" + (
        f" and {len(absent) - NAMED} more" if absent[NAMED:] else ""
    )


def _by_hand(file: DataFile, cache: Path) -> str:
    address = " or ".join(file.download.urls)
    if file.download.archive:
        step = f"Download {address} by hand ({file.download.size:,} bytes) and unpack it in {cache}"
    else:
        step = f"Download {address} by hand to {cache / file.path}"
    return f"{step}, or set LATEPHASE_DATA to a folder that holds these files."


def _folders() -> list[Path]:
    folder = data_folder()
    return [cache_folder()] if folder is None else [folder, cache_folder()]


def _place(file: DataFile, folder: Path) -> Path:
    places = [folder / relative for relative in (file.path, *file.also)]
    return next((place for place in places if is_there(place)), places[0])


def _absent(files: tuple[DataFile, ...], folder: Path) -> list[DataFile]:
    return [file for file in files if not is_there(_place(file, folder))]
