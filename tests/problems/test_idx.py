import gzip
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latephase.problems.data.idx import read_idx


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    """A file as the format's description has it."""
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["gzipped", "plain"])
def test_images_come_back_as_they_were_written(tmp_path, images, pack):
    path = tmp_path / "images"  # the name does not say whether it is gzipped
    path.write_bytes(pack(idx(images)))
    found = read_idx(path)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), images)
    found[0] = 0  # the tensor's memory may be written to


def test_labels_and_sizes_beyond_one_byte(tmp_path):
    labels = np.arange(70_000, dtype=np.uint32).astype(np.uint8)
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(idx(labels), compresslevel=1))
    assert np.array_equal(read_idx(str(path)).numpy(), labels)


def test_no_images_at_all(tmp_path):
    path = tmp_path / "none"
    path.write_bytes(idx(np.empty((0, 28, 28), dtype=np.uint8)))
    assert read_idx(path).shape == (0, 28, 28)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: gzip.compress(file)[:-20], "damaged gzip"),
        (lambda file: gzip.compress(file)[:40] + b"\xff" * 40 + gzip.compress(file)[80:], "damaged gzip"),
        (lambda file: b"", "begins with nothing"),
        (lambda file: b"\x89PNG" + file, "begins with 89504e47"),
        (lambda file: file[:2] + b"\x0d" + file[3:], "type 0x0d; only unsigned bytes"),
        (lambda file: file[:9], "header of 3 dimensions is incomplete"),
        (lambda file: b"\0\0\x08\0", "header of 0 dimensions"),
        (lambda file: file[:-1], "should hold 7 x 5 x 3 bytes after its header, but holds 104"),
        (lambda file: file + b"\0", "7 x 5 x 3 bytes after its header, but holds more"),
        (lambda file: gzip.compress(file + b"\0"), "but holds more"),
        (lambda file: gzip.compress(file)[:-1], "damaged gzip"),
        (lambda file: gzip.compress(file)[:-8] + b"\0" * 8, "damaged gzip"),  # the checksum at the end
        (lambda file: b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"\7", "header of 255 dimensions"),
        (lambda file: b"\0\0\x08\3" + b"\xff" * 12, "announces 4294967295 x 4294967295 x 4294967295 bytes"),
        (lambda file: b"\0\0\x08\3" + b"\0" * 4 + b"\xff" * 8, "announces 0 x 4294967295 x 4294967295 bytes"),
        (lambda file: b"<!DOCTYPE html><html>404</html>", "not an IDX file: it begins with 3c21444f"),
    ],
)
def test_a_bad_file_is_refused_by_name_with_the_reason(tmp_path, images, damage, message):
    path = tmp_path / "bad"
    path.write_bytes(damage(idx(images)))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        read_idx(path)


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "absent")


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        read_idx(tmp_path)


def gzipped_zeros(megabytes: int, first: bytes) -> bytes:
    """A gzip file that unpacks to first and then zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [packer.compress(first), *(packer.compress(bytes(1 << 20)) for _ in range(megabytes))]
    return b"".join(pieces) + packer.flush()


@pytest.mark.parametrize(
    ("rows", "message"), [(3, "but holds more"), (1 << 28, "more than 1,000,000 are not expected")]
)
def test_what_a_small_file_unpacks_to_is_not_held(tmp_path, rows, message):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzipped_zeros(64, b"\0\0\x08\1" + struct.pack(">I", rows)))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_idx(path, max_bytes=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # a piece of 1 MiB and buffers, of 64 MiB
    finally:
        tracemalloc.stop()


REUSED_FOLDER = [HealthCheck.function_scoped_fixture]
"""The files of a property's examples follow each other in one folder."""


@settings(deadline=None, max_examples=60, suppress_health_check=REUSED_FOLDER)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4), seed=st.integers(0, 99), packed=st.booleans())
def test_any_array_comes_back(tmp_path, sizes, seed, packed):
    array = np.random.default_rng(seed).integers(0, 256, sizes, dtype=np.uint8)
    (tmp_path / "any").write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    assert np.array_equal(read_idx(tmp_path / "any").numpy(), array)


@settings(deadline=None, max_examples=300, suppress_health_check=REUSED_FOLDER)
@given(data=st.data())
def test_a_damaged_gzip_file_is_refused_or_unharmed(tmp_path, data):
    array = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    file = bytearray(gzip.compress(idx(array)))
    for at, change in data.draw(st.lists(st.tuples(st.integers(0, len(file) - 1), st.integers(1, 255)), max_size=3)):
        file[at] ^= change
    (tmp_path / "damaged").write_bytes(file[: data.draw(st.integers(0, len(file)))])
    try:
        found = read_idx(tmp_path / "damaged")
    except ValueError:
        return
    assert np.array_equal(found.numpy(), array)  # only the time or the like has changed: the content has a checksum
