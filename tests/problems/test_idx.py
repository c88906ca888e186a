import gzip
import re
import struct

import numpy as np
import pytest
import torch

from latephase.problems.idx import read_idx


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
        (lambda file: file + b"\0", "but holds 106"),
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
