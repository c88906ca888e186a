"""Readers of the published data files, on small ones in the same formats: MNIST, CIFAR, tables and text."""

import contextlib
import gzip
import os
import re
import shutil
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import HTML, REUSED_FOLDER, own_folder, put, shrink

from latephase.problems import data
from latephase.problems.data import DATA_SETS, DataError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    return own_folder(tmp_path, monkeypatch)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path) -> list[np.ndarray]:
    """A training set of five and a test set of three images."""
    random = np.random.default_rng(0)
    arrays = []
    for kind, rows in (("train", 5), ("t10k", 3)):
        arrays += [random.integers(0, 256, (rows, 28, 28), dtype=np.uint8), np.arange(rows, dtype=np.uint8)]
        put(folder, f"{kind}-images-idx3-ubyte.gz", gzip.compress(idx(arrays[-2])))
        put(folder, f"{kind}-labels-idx1-ubyte.gz", gzip.compress(idx(arrays[-1])))
    return arrays


@pytest.mark.parametrize("place", ["MNIST", "MNIST/raw"])
def test_mnist_is_read_from_both_layouts(folder, monkeypatch, place):
    shrink(monkeypatch, "mnist", [5, 5, 3, 3])
    images, labels, test_images, test_labels = write_mnist(folder / place)
    found = data.mnist()
    assert np.array_equal(found.train_images.squeeze(1), images)
    assert np.array_equal(found.train_labels, labels)
    assert np.array_equal(found.test_images.squeeze(1), test_images)
    assert np.array_equal(found.test_labels, test_labels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", HTML, "is not an IDX file: it begins with 3c21444f"),
        ("train-images-idx3-ubyte.gz", b"", "is not an IDX file: it begins with nothing"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(np.ones((5, 28, 28), np.uint8)))[:-9], "damaged gzip"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(np.ones((5, 28, 27), np.uint8))), "5 x 28 x 27 bytes"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(np.ones((6, 28, 28), np.uint8))), "announces 6 x 28 x 28"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.array([3, 10, 9], np.uint8))), "label 10 in row 1"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.array([3, 9], np.uint8))), "holds 2 bytes instead of 3"),
    ],  # names of their own: gzip notes the second, which two workers need not collect in alike
    ids=["page", "empty", "cut", "narrow", "long", "label", "short"],
)
def test_a_bad_mnist_file_is_refused_with_what_to_do(folder, monkeypatch, name, content, message):
    shrink(monkeypatch, "mnist", [5, 5, 3, 3])
    write_mnist(folder / "MNIST")
    path = put(folder / "MNIST", name, content)
    expected = (
        f"{re.escape(str(path))}.*{message}.*Put the published file of .* bytes in its place .*127.0.0.1:9/{name}"
    )
    with pytest.raises(DataError, match=expected):
        data.mnist()


def write_cifar(folder: Path, name: str, rows: int, label_bytes: int, random) -> tuple[np.ndarray, np.ndarray]:
    """A file of random records as the data set's page describes them; its images and labels."""
    labels = random.integers(0, 10, (rows, label_bytes), dtype=np.uint8)
    images = random.integers(0, 256, (rows, 3, 32, 32), dtype=np.uint8)
    put(folder, name, np.concatenate([labels, images.reshape(rows, -1)], axis=1).tobytes())
    return images, labels[:, -1].astype(np.int64)


@settings(deadline=None, max_examples=30, suppress_health_check=REUSED_FOLDER)
@given(draws=st.data())
def test_random_records_come_back(folder, monkeypatch, draws):
    parts = draws.draw(st.lists(st.integers(1, 6), min_size=6, max_size=6))
    shrink(monkeypatch, "cifar10", parts)
    random = np.random.default_rng(draws.draw(st.integers(0, 99)))
    names = [*(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin"]
    written = [
        write_cifar(folder / "cifar-10-batches-bin", name, rows, 1, random)
        for name, rows in zip(names, parts, strict=True)
    ]
    images, labels = (np.concatenate(part) for part in zip(*written[:-1], strict=True))
    for rows in (None, draws.draw(st.integers(1, sum(parts[:-1])))):
        found = data.cifar10(rows=rows)
        assert np.array_equal(found.train_images, images[:rows])
        assert np.array_equal(found.train_labels, labels[:rows])
        assert np.array_equal(found.test_images, written[-1][0])
        assert np.array_equal(found.test_labels, written[-1][1])


@pytest.fixture
def small_cifar(folder, monkeypatch) -> Path:
    """CIFAR-10 with 10 rows in each training file and 4 test rows; data_batch_1.bin and test_batch.bin are there."""
    shrink(monkeypatch, "cifar10", [10, 10, 10, 10, 10, 4])
    random = np.random.default_rng(0)
    write_cifar(folder / "cifar-10-batches-bin", "data_batch_1.bin", 10, 1, random)
    write_cifar(folder / "cifar-10-batches-bin", "test_batch.bin", 4, 1, random)
    return folder / "cifar-10-batches-bin"


def test_leading_rows_need_the_leading_file_alone_and_take_fewer_test_rows(small_cifar):
    write_cifar(small_cifar, "test_batch.bin", 2, 1, np.random.default_rng(1))
    found = data.cifar10(rows=7)
    assert (len(found.train_images), len(found.test_images)) == (7, 2)
    assert not data.missing("cifar10", 10)
    assert [file.path[-10:] for file in data.missing("cifar10", 11)] == ["atch_2.bin"]
    with pytest.raises(DataError, match=r"cifar10 is not complete: .* lacks .*data_batch_2.bin \(30,730 bytes\)"):
        data.cifar10(rows=11)
    for rows in (0, -1, 51):
        with pytest.raises(ValueError, match=f"rows of cifar10 must be from 1 to 50, got {rows}"):
            data.cifar10(rows=rows)


def test_without_rows_the_published_counts_are_required(small_cifar):
    for part in range(2, 6):
        write_cifar(small_cifar, f"data_batch_{part}.bin", 10, 1, np.random.default_rng(part))
    assert len(data.cifar10().test_images) == 4
    write_cifar(small_cifar, "test_batch.bin", 2, 1, np.random.default_rng(1))
    with pytest.raises(DataError, match=r"test_batch.bin holds 2 of 4 rows: a subset, which is read with rows= alone"):
        data.cifar10()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: b"", r"has 0 bytes instead of 30,730, or a smaller multiple of 3,073"),
        (lambda file: file[:-1], r"has 30,729 bytes instead of 30,730"),
        (lambda file: file + b"\0" * 3073, r"has 33,803 bytes instead of 30,730"),
        (lambda file: file[: 3 * 3073], r"holds 3 rows, but 10 are wanted of it"),
        (lambda file: HTML, r"has 54 bytes instead of 30,730"),
        (
            lambda file: file[: 2 * 3073] + b"\x0a" + file[2 * 3073 + 1 :],
            r"holds label 10 in row 2; labels must be 0 to 9",
        ),
    ],
)
def test_a_bad_cifar_file_is_refused_with_what_to_do(small_cifar, damage, message):
    path = small_cifar / "data_batch_1.bin"
    path.write_bytes(damage(path.read_bytes()))
    expected = (
        f"{re.escape(str(path))} {message}.*published file of 30,730 bytes.*to be found in http.*data_batch_1.bin"
    )
    with pytest.raises(DataError, match=expected):
        data.cifar10(rows=10)


@settings(deadline=None, max_examples=50, suppress_health_check=REUSED_FOLDER)
@given(draws=st.data())
def test_any_bytes_are_read_as_records_or_refused(small_cifar, draws):
    path = small_cifar / "data_batch_1.bin"
    original = path.read_bytes()
    changed = bytearray(original)
    for at in draws.draw(st.lists(st.integers(0, len(changed) - 1), max_size=5)):
        changed[at] ^= draws.draw(st.integers(1, 255))
    path.write_bytes(changed[: draws.draw(st.sampled_from([len(changed), 3 * 3073, 100]))])
    with contextlib.suppress(DataError):
        found = data.cifar10(rows=3)
        assert np.array_equal(
            found.train_images.flatten(1)[2], np.frombuffer(bytes(changed[2 * 3073 + 1 : 3 * 3073]), "u1")
        )
    path.write_bytes(original)


def test_a_directory_in_place_of_a_file(small_cifar):
    (small_cifar / "data_batch_1.bin").unlink()
    (small_cifar / "data_batch_1.bin").mkdir()
    with pytest.raises(DataError, match=r"data_batch_1.bin cannot be read: Is a directory\. Put the published file"):
        data.cifar10(rows=3)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs users and permissions as on Unix")
@pytest.mark.parametrize("closed", ["cifar-10-batches-bin/data_batch_1.bin", "cifar-10-batches-bin", "."])
def test_a_file_that_may_not_be_read(small_cifar, monkeypatch, closed):
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        shutil.copytree(small_cifar, Path(folder, "cifar-10-batches-bin"))
        monkeypatch.setenv("LATEPHASE_DATA", folder)
        Path(folder).chmod(0o755)
        Path(folder, closed).chmod(0)
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            with pytest.raises(DataError, match=r"data_batch_1.bin cannot be read: Permission denied"):
                data.cifar10(rows=3)
        finally:
            os.seteuid(user)
            Path(folder, closed).chmod(0o755)


TABLE = "1 2 3 4 5 6 7 8 9\n" * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds 0 lines of no numbers instead of 4 of 9"),
        (TABLE + "1", "holds 5 lines of 1 or 9 numbers instead of 4 of 9"),
        (TABLE[:-2], "holds 4 lines of 8 or 9 numbers"),
        (TABLE[:-2] + "x\n", "holds something else than numbers: could not convert string to float: 'x'"),
        (TABLE[:-2] + "nan\n", "holds a number that is not finite in row 3"),
        (TABLE + " " * 200, "more than twice as long"),
        ("\u00e9" + TABLE, "not ASCII text"),
    ],
)
def test_a_bad_table_is_refused_with_what_to_do(folder, monkeypatch, content, message):
    published = DATA_SETS["uci_energy"]
    small = replace(published.files[0], rows=4, size=len(TABLE))
    monkeypatch.setitem(DATA_SETS, "uci_energy", replace(published, files=(small,)))
    path = put(folder, "uci/energy/data.txt", TABLE.replace("\n", "\r\n").replace(" ", "\t").encode())
    assert data.uci("energy").tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 4  # other blanks and line ends
    path.write_bytes(content.encode())
    with pytest.raises(DataError, match=f"{re.escape(str(path))} .*{message}.*Put the published file of 72 bytes"):
        data.uci("energy")


def test_a_text_of_another_length_is_refused(folder):
    put(folder, "tiny_shakespeare/input.txt", b"To be, or not to be")
    with pytest.raises(DataError, match=r"input.txt holds 19 characters instead of 1,115,394"):
        data.tiny_shakespeare()


def test_unknown_names_list_the_known_ones(folder):
    with pytest.raises(ValueError, match="unknown UCI data set 'wine'; known: energy, protein"):
        data.uci("wine")
    with pytest.raises(ValueError, match="unknown data set 'cifar'; known: mnist, fashion_mnist, cifar10"):
        data.missing("cifar")
