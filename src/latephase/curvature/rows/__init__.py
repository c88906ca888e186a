"""Rows J~ of the Gauss-Newton matrix: GGN = J~'J~, piece by piece."""

from .chunk_rows import ChunkRows as ChunkRows
from .chunk_rows import together as together
from .kernel import kernel_of as kernel_of
