"""Arrays of bytes in MATLAB's version 5 files, read strictly.

The format (MathWorks, "MAT-File Format", 2019): a header of 128 bytes, then elements, each a tag of its type and size
and then its content; an array is an element that holds others: flags, dimensions, name and numbers. A compressed
element is a zlib stream that holds one element. `scipy.io.loadmat` reads far more of the format, but a changed byte in
a file can end the whole process in it (scipy 1.17.1: a segmentation fault in `read_var_array`).
"""

import struct
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

BYTES, DOUBLES, MATRIX, COMPRESSED = 2, 9, 14, 15
"""Types of an element."""
CLASSES = {6: "double", 9: "uint8"}
"""Classes of an array that are read. MATLAB stores doubles that are all small whole numbers as bytes."""
COMPLEX = 0x08
"""Bit of an array's second byte of flags."""
MOST_HEADER = 64
"""Bytes of an array's flags, dimensions or name; a name has 63 at most."""
PIECE = 1 << 20
"""Bytes that are read or unpacked at a time."""


def read_arrays(path: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Read arrays of whole numbers from 0 to 255. No more is held than they need, whatever the file announces.

    Args:
        path: Of the file.
        expected: The shape of each array that is wanted. Others in the file are passed over.

    Returns:
        The arrays, uint8, in column-major order as they are stored.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, of another format or version, or holds other arrays under these names.
    """
    found: dict[str, np.ndarray] = {}
    with path.open("rb") as file:
        header = file.read(128)
        if header[124:] != b"\0\1IM":
            raise ValueError(f"{path} is not a little-endian MATLAB file of version 5: it begins with {header[:20]!r}")
        try:
            while len(tag := file.read(8)) == 8:
                kind, size = struct.unpack("<II", tag)
                end = file.tell() + size
                stream = _Packed(file, size) if kind == COMPRESSED else file
                if kind == COMPRESSED:
                    kind, _ = struct.unpack("<II", _exactly(stream, 8))
                if kind == MATRIX:
                    found |= _matrix(stream, expected)
                file.seek(end)
            if lacking := [name for name in expected if name not in found]:
                raise ValueError(f"it lacks {', '.join(lacking)}")
        except (ValueError, zlib.error) as error:
            raise ValueError(f"{path} is not the published MATLAB file: {error}") from error
    return found


class _Packed:
    """A zlib stream in a file, unpacked as far as it is asked for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left, self.unpacker = file, size, zlib.decompressobj()

    def read(self, count: int) -> bytes:
        """At most count bytes, and none only at the end."""
        while count and not self.unpacker.eof:
            packed = self.unpacker.unconsumed_tail
            if not packed:
                packed = self.file.read(min(PIECE, self.left))
                self.left -= len(packed)
            piece = self.unpacker.decompress(packed, count)
            if piece or not packed:
                return piece
        return b""


def _exactly(stream: BinaryIO | _Packed, count: int) -> bytearray:
    content = bytearray()
    while len(content) < count:
        piece = stream.read(min(PIECE, count - len(content)))
        if not piece:
            raise ValueError(f"it ends {count - len(content)} bytes too early")
        content += piece
    return content


def _element(stream: BinaryIO | _Packed, most: int) -> tuple[int, bytearray]:
    """Type and content of the next element, without what fills it up to a multiple of 8 bytes."""
    tag = _exactly(stream, 8)
    kind, size = struct.unpack("<II", tag)
    if kind >> 16:  # at most 4 bytes are kept in the tag
        return kind & 0xFFFF, tag[4 : 4 + min(kind >> 16, 4)]
    if size > most:
        raise ValueError(f"an element has {size:,} bytes where at most {most:,} are expected")
    return kind, _exactly(stream, size)


def _header(stream: BinaryIO | _Packed) -> bytearray:
    """The content of an element before the numbers."""
    _, content = _element(stream, MOST_HEADER)
    _exactly(stream, -len(content) % 8 if len(content) > 4 else 0)
    return content


def _matrix(stream: BinaryIO | _Packed, expected: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The array that comes next, by its name; nothing if it is not wanted."""
    flags, dimensions, label = _header(stream), _header(stream), _header(stream)
    name = label.decode("latin-1")
    if name not in expected:
        return {}
    shape = tuple(np.frombuffer(dimensions[: len(dimensions) // 4 * 4], "<i4").tolist())
    if len(flags) != 8 or flags[0] not in CLASSES or flags[1] & COMPLEX or shape != expected[name]:
        held = CLASSES.get(flags[0], f"class {flags[0]}") if flags else "no class"
        raise ValueError(f"{name} is {held} {shape} instead of uint8 or double {expected[name]}")
    count = prod(shape)
    kind, content = _element(stream, 8 * count)
    if (kind, len(content)) not in ((BYTES, count), (DOUBLES, 8 * count)):
        raise ValueError(f"{name} has {len(content):,} bytes of type {kind} for {count:,} numbers")
    if isinstance(stream, _Packed):
        stream.read(8)  # what fills it up
        if stream.read(1) or not stream.unpacker.eof:
            raise ValueError(f"the compressed element of {name} does not end where it should")
    numbers = np.frombuffer(content, np.uint8 if kind == BYTES else "<f8")
    return {name: _as_bytes(name, numbers).reshape(shape, order="F")}


def _as_bytes(name: str, numbers: np.ndarray) -> np.ndarray:
    if numbers.dtype == np.uint8:
        return numbers
    with np.errstate(invalid="ignore"):  # what cannot be converted differs afterwards
        converted = numbers.astype(np.uint8)
    if not np.array_equal(converted, numbers):
        raise ValueError(f"{name} holds other numbers than 0 to 255")
    return converted
