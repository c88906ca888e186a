"""Tables and text: two regression data sets of the UCI repository, and Tiny Shakespeare."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .catalogue import DataFile, data_set
from .errors import reading
from .find import locate

COLUMNS = {"energy": 9, "protein": 10}
"""The UCI data sets and their numbers of columns."""


def uci(name: str) -> Tensor:
    """A regression table of the UCI repository, one row per example, the target in the last column.

    Args:
        name: "energy" (768 rows: 8 properties of a building, its heating load) or "protein" (45,730 rows: 9
            physicochemical properties of a decoy, its root-mean-square deviation from the native structure, in
            angstrom), as laid out by Hernandez-Lobato and Adams (2015, "Probabilistic backpropagation").

    Returns:
        float64 [rows, columns], not normalised, in the published order.

    Raises:
        DataError: the file is missing and cannot be downloaded, or is not as published.
        ValueError: there is no table of that name.
    """
    if name not in COLUMNS:
        raise ValueError(f"unknown UCI data set {name!r}; known: {', '.join(COLUMNS)}")
    ((file, path),) = locate(data_set(f"uci_{name}"))
    with reading(file, path):
        lines = [line.split() for line in _text(file, path).splitlines() if line.strip()]
        widths = {len(line) for line in lines}
        if len(lines) != file.rows or widths != {COLUMNS[name]}:
            raise ValueError(
                f"{path} holds {len(lines):,} lines of {' or '.join(map(str, sorted(widths))) or 'no'} numbers instead "
                f"of {file.rows:,} of {COLUMNS[name]}"
            )
        try:
            table = np.array(lines, dtype=np.float64)
        except ValueError as error:
            raise ValueError(f"{path} holds something else than numbers: {error}") from error
        if not np.isfinite(table).all():
            row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
            raise ValueError(f"{path} holds a number that is not finite in row {row}")
    return torch.from_numpy(table)


def tiny_shakespeare() -> str:
    """Tiny Shakespeare: 1,115,394 ASCII characters, 65 distinct ones, of Shakespeare's plays in 40,000 lines.

    Raises:
        DataError: the file is missing and cannot be downloaded, or is not as published.
    """
    ((file, path),) = locate(data_set("tiny_shakespeare"))
    with reading(file, path):
        text = _text(file, path)
        if len(text) != file.size:
            raise ValueError(f"{path} holds {len(text):,} characters instead of {file.size:,}")
    return text


def _text(file: DataFile, path: Path) -> str:
    """The ASCII text of a file, which may be at most twice as long as published (other line ends, more blanks)."""
    with path.open("rb") as stream:
        content = stream.read(2 * file.size + 1)
    if len(content) > 2 * file.size:
        raise ValueError(f"{path} is more than twice as long as the published {file.size:,} bytes")
    if not content.isascii():
        raise ValueError(f"{path} holds bytes that are not ASCII text")
    return content.decode("ascii")
