"""Files in the IDX format, in which MNIST and its kin are published."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

UNSIGNED_BYTES = 0x08
"""The type code of the format for uint8, the only one that these data sets use."""


def read_idx(path: str | Path) -> Tensor:
    """Read one IDX file of bytes, gzipped or not: images [N, height, width] or labels [N], uint8.

    The format (LeCun, Cortes and Burges, "The MNIST database of handwritten digits"): two zero bytes, a type code, the
    number of dimensions, each dimension's size as a big-endian uint32, and the entries, the last index running fastest.

    Args:
        path: of the file. Whether it is gzipped is told from its first bytes, not from its name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, not an IDX file, or holds other entries than bytes; says which.
    """
    path = Path(path)
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file: it begins with {content[:4].hex() or 'nothing'}, not with 0000")
    kind, dimensions = content[2], content[3]
    if kind != UNSIGNED_BYTES:
        raise ValueError(f"{path} holds entries of IDX type 0x{kind:02x}; only unsigned bytes (0x08) are read")
    start = 4 + 4 * dimensions
    if dimensions == 0 or len(content) < start:
        raise ValueError(f"{path} is not an IDX file: its header of {dimensions} dimensions is incomplete")
    sizes = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(sizes):
        shape = " x ".join(map(str, sizes))
        raise ValueError(f"{path} should hold {shape} bytes after its header, but holds {len(content) - start}")
    if not math.prod(sizes):
        return torch.empty(sizes, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(sizes)
