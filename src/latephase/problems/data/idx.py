"""Files in the IDX format, in which MNIST and its kin are published."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

UNSIGNED_BYTES = 0x08
"""The type code of the format for uint8, the only one that these data sets use."""
MOST_DIMENSIONS = 8
"""More than any data set has; a header that names more is not one."""
PIECE = 1 << 20
"""Bytes that are decompressed at a time."""


def read_idx(path: str | Path, *, max_bytes: int = 1 << 30) -> Tensor:
    """Read one IDX file of bytes, gzipped or not: images [N, height, width] or labels [N], uint8.

    The format (LeCun, Cortes and Burges, "The MNIST database of handwritten digits"): two zero bytes, a type code, the
    number of dimensions, each dimension's size as a big-endian uint32, and the entries, the last index running fastest.

    Args:
        path: of the file. Whether it is gzipped is told from its first bytes, not from its name.
        max_bytes: What the header may announce. No more than that is ever held in memory, however much a gzipped file
            would unpack to. Default: 1 GiB, 23 times MNIST's largest file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be opened or read.
        ValueError: the file is damaged, not an IDX file, too large, or holds other entries than bytes; says which.
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.peek(2)[:2] != b"\x1f\x8b":
            return _read(file, path, max_bytes)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read(unpacked, path, max_bytes)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error


def _read(file: BinaryIO | gzip.GzipFile, path: Path, max_bytes: int) -> Tensor:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file: it begins with {start.hex() or 'nothing'}, not with 0000")
    kind, dimensions = start[2], start[3]
    if kind != UNSIGNED_BYTES:
        raise ValueError(f"{path} holds entries of IDX type 0x{kind:02x}; only unsigned bytes (0x08) are read")
    header = file.read(4 * dimensions)
    if not 1 <= dimensions <= MOST_DIMENSIONS or len(header) < 4 * dimensions:
        raise ValueError(
            f"{path} is not an IDX file: its header of {dimensions} dimensions is incomplete or impossible"
        )
    sizes = struct.unpack(f">{dimensions}I", header)
    shape = " x ".join(map(str, sizes))
    if math.prod(size or 1 for size in sizes) > max_bytes:
        raise ValueError(f"{path} announces {shape} bytes; more than {max_bytes:,} are not expected of it")
    content = _content(file, math.prod(sizes))
    if len(content) != math.prod(sizes):
        raise ValueError(f"{path} should hold {shape} bytes after its header, but holds {len(content)}")
    if file.read(1):
        raise ValueError(f"{path} should hold {shape} bytes after its header, but holds more")
    if not content:
        return torch.empty(sizes, dtype=torch.uint8)
    return torch.frombuffer(content, dtype=torch.uint8).reshape(sizes)


def _content(file: BinaryIO | gzip.GzipFile, count: int) -> bytearray:
    """The next count bytes, or as many as there are, never holding more than that."""
    content = bytearray()
    while len(content) < count:
        piece = file.read(min(PIECE, count - len(content)))
        if not piece:
            break
        content += piece
    return content
