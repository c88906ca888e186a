"""Downloads of archives: what is unpacked of them, and what is not."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from file_server import Server, left_in, serving, whole

from latephase.problems import data
from latephase.problems.data import DATA_SETS, DataError, DataFile, Download


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("LATEPHASE_DATA", raising=False)
    monkeypatch.setenv("LATEPHASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


CIFAR_MEMBERS = {"cifar-100-binary/train.bin": 40, "cifar-100-binary/test.bin": 20}
"""Members of the archive and their rows."""


def tar_gz(members: dict[str, bytes | str]) -> bytes:
    """A .tar.gz of these files; a text makes a symbolic link to it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def cifar_members() -> dict[str, bytes | str]:
    random = np.random.default_rng(0)
    return {
        name: random.integers(0, 100, rows * 3074, dtype=np.uint8).tobytes() for name, rows in CIFAR_MEMBERS.items()
    }


@pytest.fixture
def offer_archive(monkeypatch, server, cache) -> Callable[[bytes], None]:
    """Let CIFAR-100 have 40 and 20 rows, in this archive."""

    def set_archive(content: bytes) -> None:
        address = server.address("cifar-100-binary.tar.gz", whole(content))
        source = Download((address,), f"md5:{hashlib.md5(content).hexdigest()}", len(content), archive=True)
        files = tuple(DataFile(name, rows * 3074, source, rows) for name, rows in CIFAR_MEMBERS.items())
        monkeypatch.setitem(DATA_SETS, "cifar100", replace(DATA_SETS["cifar100"], files=files))

    return set_archive


def test_an_archive_is_unpacked_and_only_what_is_read(offer_archive, server, cache, tmp_path):
    members = cifar_members()
    others: dict[str, bytes | str] = {
        "../escaped.bin": b"out",
        "cifar-100-binary/../../escaped.bin": b"out",
        str(tmp_path / "escaped.bin"): b"out",
        "cifar-100-binary/readme.html": b"not read",
        "cifar-100-binary": "/etc",
    }
    offer_archive(tar_gz(others | members))
    found = data.cifar100()
    train = np.frombuffer(members["cifar-100-binary/train.bin"], np.uint8).reshape(40, 3074)  # type: ignore[arg-type]
    assert np.array_equal(found.train_images.flatten(1), train[:, 2:])
    assert np.array_equal(found.train_labels, train[:, 1])
    assert left_in(cache) == ["cifar-100-binary/test.bin", "cifar-100-binary/train.bin"]
    assert not list(tmp_path.rglob("escaped.bin"))
    (cache / "cifar-100-binary/test.bin").unlink()
    data.cifar100()
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members.pop("cifar-100-binary/test.bin"), "the archive lacks cifar-100-binary/test.bin"),
        (
            lambda members: members.update({"cifar-100-binary/test.bin": b"x"}),
            "test.bin in the archive is not a file of",
        ),
        (lambda members: members.update({"cifar-100-binary/test.bin": "/etc/passwd"}), "is not a file of 61,480 bytes"),
    ],
    ids=["missing", "of another size", "a link"],
)
def test_an_archive_without_a_member_is_refused_and_nothing_is_left(offer_archive, cache, change, message):
    members = cifar_members()
    change(members)
    offer_archive(tar_gz(members))
    with pytest.raises(DataError, match=message):
        data.cifar100()
    assert left_in(cache) == []


@pytest.mark.parametrize(
    "damage", [lambda file: file[:-5000], lambda file: file[:9000] + bytes(99) + file[9099:], lambda file: b"<html>"]
)
def test_a_damaged_archive_is_refused_and_nothing_is_left(offer_archive, cache, damage):
    offer_archive(damage(tar_gz(cifar_members())))
    with pytest.raises(DataError, match=r"the archive (is damaged|lacks)"):
        data.cifar100()
    assert left_in(cache) == []
