"""The reader of MATLAB files, on small ones in SVHN's format."""

import contextlib
import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from small_data import HTML, REUSED_FOLDER, own_folder, shrink

from latephase.problems import data
from latephase.problems.data import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    return own_folder(tmp_path, monkeypatch)


def write_svhn(folder: Path, name: str, rows: int, *, packed: bool = True, **arrays) -> dict[str, np.ndarray]:
    """A file as published: images [32, 32, 3, N] and labels [N, 1] from 1 to 10."""
    random = np.random.default_rng(rows)
    images = random.integers(0, 256, (32, 32, 3, rows), dtype=np.uint8)
    written = {"X": images, "y": random.integers(1, 11, (rows, 1), dtype=np.uint8), **arrays}
    (folder / "SVHN").mkdir(exist_ok=True)
    savemat(folder / "SVHN" / name, written, do_compression=packed)
    return written


@pytest.fixture
def small_svhn(folder, monkeypatch) -> Path:
    """SVHN with 30 training and 20 test images."""
    shrink(monkeypatch, "svhn", [30, 20])
    write_svhn(folder, "train_32x32.mat", 30)
    write_svhn(folder, "test_32x32.mat", 20)
    return folder


@pytest.mark.parametrize("packed", [True, False], ids=["compressed", "plain"])
@pytest.mark.parametrize("labels", [np.uint8, np.float64])
def test_svhn_comes_back(small_svhn, packed, labels):
    written = write_svhn(
        small_svhn, "train_32x32.mat", 30, packed=packed, y=np.arange(30, dtype=labels)[:, None] % 10 + 1
    )
    found = data.svhn()
    assert found.train_images.shape == (30, 3, 32, 32)
    assert found.test_images.shape == (20, 3, 32, 32)
    assert np.array_equal(found.train_images[7, 2], written["X"][:, :, 2, 7])
    assert found.train_labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert found.train_labels.dtype == torch.int64
    assert found.train_images.is_contiguous()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros((30, 1), np.uint8)}, r"holds label 0 in row 0; labels must be 1 to 10"),
        ({"y": np.full((30, 1), 11, np.uint8)}, r"holds label 11 in row 0"),
        ({"y": np.full((30, 1), 1.5)}, r"y holds other numbers than 0 to 255"),
        ({"y": np.full((30, 1), np.nan)}, r"y holds other numbers than 0 to 255"),
        ({"y": np.ones((29, 1), np.uint8)}, r"y is uint8 \(29, 1\) instead of uint8 or double \(30, 1\)"),
        ({"X": np.zeros((32, 32, 3, 29), np.uint8)}, r"X is uint8 \(32, 32, 3, 29\) instead of .* \(32, 32, 3, 30\)"),
        ({"X": np.zeros((32, 32, 3, 30), np.int8)}, r"X is class 8 \(32, 32, 3, 30\) instead of uint8 or double"),
        ({"X": "text"}, r"X is class 4 \(1, 4\) instead"),
    ],
)
def test_other_arrays_than_svhns_are_refused(small_svhn, arrays, message):
    write_svhn(small_svhn, "train_32x32.mat", 30, **arrays)
    path = re.escape(str(small_svhn / "SVHN/train_32x32.mat"))
    with pytest.raises(DataError, match=f"{path} .*{message}.*Put the published file"):
        data.svhn()


MATRIX = struct.pack("<IIQIIiiiiHHcxxx", 6, 8, 9, 5, 16, 32, 32, 3, 30, 1, 1, b"X")
"""Flags, dimensions and name of the training images, as the format's description has them."""


def packed(element: bytes) -> bytes:
    content = zlib.compress(element)
    return struct.pack("<II", 15, len(content)) + content


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: b"", "MATLAB file of version 5: it begins with b''"),
        (lambda file: HTML * 10, "MATLAB file of version 5: it begins with b'<!DOCTYPE html>"),
        (lambda file: b"\x89HDF\r\n\x1a\n" + bytes(200), "not a little-endian MATLAB file of version 5"),
        (lambda file: file[:5000], r"it ends \d+ bytes too early"),
        (lambda file: file[:128], "it lacks X, y"),
        (lambda file: file[:400] + bytes(100) + file[500:], "Error -3 while decompressing"),
        (lambda file: file[:132] + b"\xff\xff\xff\x7f" + file[136:], "it lacks y"),
        (
            lambda file: file[:128] + packed(b"\x0e\0\0\0" + bytes(4) + MATRIX + b"\2\0\0\0\xff\xff\xff\x7f"),
            "at most 737,280 are",
        ),
        (
            lambda file: file[:128] + packed(b"\x0e\0\0\0" + bytes(4) + b"\6\0\0\0\xff\xff\xff\x7f"),
            "at most 64 are expected",
        ),
        (
            lambda file: file[:128] + packed(b"\x0e\0\0\0" + bytes(4) + MATRIX + b"\4\0\0\0\0\x68\1\0" + bytes(92160)),
            "92,160 bytes of type 4",
        ),
    ],
)
def test_a_bad_matlab_file_is_refused_with_what_to_do(small_svhn, damage, message):
    path = small_svhn / "SVHN/train_32x32.mat"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{re.escape(str(path))} .*{message}.*Put the published file"):
        data.svhn()


def test_what_a_small_matlab_file_unpacks_to_is_not_held(small_svhn):
    path = small_svhn / "SVHN/train_32x32.mat"
    images = struct.pack("<II", 2, 92_160) + bytes(92_160)
    path.write_bytes(path.read_bytes()[:128] + packed(struct.pack("<II", 14, 0) + MATRIX + images + bytes(64 << 20)))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="compressed element of X does not end where it should"):
            data.svhn()
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # the images and pieces of 1 MiB, of 64 MiB
    finally:
        tracemalloc.stop()


def test_other_arrays_of_a_matlab_file_are_passed_over(small_svhn):
    written = write_svhn(small_svhn, "train_32x32.mat", 30, A=np.zeros((500, 50)), B="text", C={"a": 1}, y2=[[1.5]])
    assert np.array_equal(data.svhn().train_labels, written["y"][:, 0] % 10)


@settings(deadline=None, max_examples=150, suppress_health_check=REUSED_FOLDER)
@given(draws=st.data())
def test_a_damaged_matlab_file_is_refused_or_unharmed(small_svhn, draws):
    path = small_svhn / "SVHN/train_32x32.mat"
    written = write_svhn(small_svhn, "train_32x32.mat", 30, packed=draws.draw(st.booleans()))
    file = bytearray(path.read_bytes())
    compressed = file[128] == 15
    places = st.one_of(st.integers(0, 200), st.integers(len(file) - 120, len(file) - 1), st.integers(0, len(file) - 1))
    for at in draws.draw(st.lists(places, max_size=3)):
        file[at] ^= draws.draw(st.integers(1, 255))
    path.write_bytes(file[: draws.draw(st.sampled_from([len(file), len(file), 150, len(file) // 2]))])
    with contextlib.suppress(DataError):
        found = data.svhn()
        assert found.train_images.shape == (30, 3, 32, 32)
        if compressed:  # then there is a checksum
            assert np.array_equal(found.train_images, written["X"].transpose(3, 2, 0, 1))
