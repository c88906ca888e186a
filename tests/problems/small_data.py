"""Data folders of one's own: small files in the published layout, and a table of data sets that fits them."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck

from latephase.problems.data import DATA_SETS

REUSED_FOLDER = [HealthCheck.function_scoped_fixture]
"""The files of a property's examples follow each other in one folder."""

HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
"""What a server sends that has moved a file."""


def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder and cache. All addresses lead nowhere, so that what is missing fails at once."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("LATEPHASE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LATEPHASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for published in list(DATA_SETS.values()):
        shrink(monkeypatch, published.name, [file.rows for file in published.files])
    return tmp_path / "data"


def shrink(monkeypatch, name: str, rows: list[int]) -> None:
    """Let a data set have so many rows in its files, and the sizes that follow; and no address that answers."""
    published, files = DATA_SETS[name], []
    for file, count in zip(published.files, rows, strict=True):
        nowhere = replace(file.download, urls=("http://127.0.0.1:9/" + Path(file.path).name,))
        files.append(replace(file, rows=count, size=file.size * count // file.rows, download=nowhere))
    monkeypatch.setitem(DATA_SETS, name, replace(published, files=tuple(files)))


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
