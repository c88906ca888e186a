"""What one pass over one chunk is asked for: made once, and handed down to whatever computes it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..objective import Chunk, Objective
from ..parameters import ParameterSpace


@dataclass(frozen=True, eq=False)  # by identity: tensors have no one truth value
class ChunkTask:
    """One chunk of an objective at the current parameters, and which products are wanted of it.

    Attributes:
        objective: of the chunk; says what a pass computes.
        chunk: the data.
        index: the chunk's number, for its random numbers.
        space: the parameters of the vectors.
        buffers: before the pass, by name.
        hessian: the Hessian's products instead of the Gauss-Newton matrix's. Default False.
        dtype: dtype in which the model runs. Default None: the parameters' own.
    """

    objective: Objective
    chunk: Chunk
    index: int
    space: ParameterSpace
    buffers: Mapping[str, Tensor]
    hessian: bool = False
    dtype: torch.dtype | None = None

    def in_own_dtype(self) -> "ChunkTask":
        """The same in the parameters' own dtype, as loss and gradient are computed."""
        return self if self.dtype is None else replace(self, dtype=None)
