"""Labelled images: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .catalogue import CIFAR_PIXELS, DataFile, DataSet, data_set
from .errors import reading
from .find import locate
from .idx import read_idx

ROWS_AT_ONCE = 1000
"""Records of a CIFAR file that are held beside the result."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A training and a test set, rows in the published order.

    Attributes:
        train_images: uint8 [N, channels, height, width], 0..255.
        train_labels: int64 [N].
        test_images: As the training images.
        test_labels: As the training labels.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def mnist() -> LabelledImages:
    """MNIST: 60,000 training and 10,000 test images [1, 28, 28] of digits, labels 0..9.

    Raises:
        DataError: files are missing and cannot be downloaded, or are not as published.
    """
    return _idx_images(data_set("mnist"))


def fashion_mnist() -> LabelledImages:
    """Fashion-MNIST: 60,000 training and 10,000 test images [1, 28, 28] of clothes, labels 0..9.

    Raises:
        DataError: files are missing and cannot be downloaded, or are not as published.
    """
    return _idx_images(data_set("fashion_mnist"))


def cifar10(rows: int | None = None) -> LabelledImages:
    """CIFAR-10: 50,000 training and 10,000 test images [3, 32, 32], labels 0..9.

    Args:
        rows: Take the first so many training rows, from as many of the leading files as hold them: up to 10,000 need
            `data_batch_1.bin` and `test_batch.bin` alone. Then the test file may hold fewer rows than published, and
            all of them are taken. Default: all, with the published counts.

    Raises:
        DataError: files are missing and cannot be downloaded, or are not as published.
        ValueError: there are fewer than `rows`.
    """
    return _cifar(data_set("cifar10"), label_bytes=1, classes=10, rows=rows)


def cifar100(rows: int | None = None) -> LabelledImages:
    """CIFAR-100: 50,000 training and 10,000 test images [3, 32, 32], with the fine labels 0..99.

    Args:
        rows: Take the first so many training rows. Then the files may hold fewer rows than published. Default: all,
            with the published counts.

    Raises:
        DataError: files are missing and cannot be downloaded, or are not as published.
        ValueError: there are fewer than `rows`.
    """
    return _cifar(data_set("cifar100"), label_bytes=2, classes=100, rows=rows)


def check_labels(path: Path, labels: Tensor, allowed: range) -> None:
    """Hold labels to a range.

    Raises:
        ValueError: one is outside; names the file and the row.
    """
    wrong = (labels < allowed[0]) | (labels > allowed[-1])
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{path} holds label {int(labels[row])} in row {row}; labels must be {allowed[0]} to {allowed[-1]}"
        )


def _idx_images(data: DataSet) -> LabelledImages:
    tensors = []
    for file, path in locate(data):
        shape = (file.rows, 28, 28) if "images" in file.path else (file.rows,)
        with reading(file, path):
            found = read_idx(path, max_bytes=int(np.prod(shape)))
            if found.shape != shape:
                raise ValueError(f"{path} holds {_by(found.shape)} bytes instead of {_by(shape)}")
            if found.dim() == 1:
                found = found.long()
                check_labels(path, found, range(10))
        tensors.append(found.unsqueeze(1) if found.dim() == 3 else found)
    return LabelledImages(*tensors)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _cifar(data: DataSet, *, label_bytes: int, classes: int, rows: int | None) -> LabelledImages:
    """The binary version of both data sets: records of the label's bytes and 3,072 pixels, channel by channel.

    Source: <https://www.cs.toronto.edu/~kriz/cifar.html>. The last byte of a label is the one to learn.
    """
    *batches, test = locate(data, rows)
    left = sum(file.rows for file, _ in batches) if rows is None else rows
    images, labels = [], []
    for file, path in batches:
        take = min(left, file.rows)
        found = _records(file, path, label_bytes, classes, take=take, exact=rows is None)
        images.append(found[0])
        labels.append(found[1])
        left -= take
    test_images, test_labels = _records(*test, label_bytes, classes, take=None, exact=rows is None)
    return LabelledImages(_joined(images), _joined(labels), test_images, test_labels)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _records(
    file: DataFile, path: Path, label_bytes: int, classes: int, *, take: int | None, exact: bool
) -> tuple[Tensor, Tensor]:
    """The first rows of one file: images uint8 [rows, 3, 32, 32] and labels int64 [rows]; all rows if take is None."""
    record = label_bytes + CIFAR_PIXELS
    with reading(file, path), path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        held, rest = divmod(size, record)
        if rest or not 1 <= held <= file.rows:
            raise ValueError(f"{path} has {size:,} bytes instead of {file.size:,}, or a smaller multiple of {record:,}")
        if exact and held != file.rows:
            raise ValueError(f"{path} holds {held:,} of {file.rows:,} rows: a subset, which is read with rows= alone")
        take = held if take is None else take
        if take > held:
            raise ValueError(f"{path} holds {held:,} rows, but {take:,} are wanted of it")
        images = torch.empty(take, 3, 32, 32, dtype=torch.uint8)
        labels = torch.empty(take, dtype=torch.int64)
        for start in range(0, take, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, take - start)
            block = np.fromfile(stream, dtype=np.uint8, count=count * record).reshape(count, record)
            images[start : start + count] = torch.from_numpy(block[:, label_bytes:]).reshape(count, 3, 32, 32)
            labels[start : start + count] = torch.from_numpy(block[:, label_bytes - 1])
        check_labels(path, labels, range(classes))
    return images, labels
