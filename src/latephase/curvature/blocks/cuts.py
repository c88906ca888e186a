"""Places of a traced graph through which everything passes."""

import math
from dataclasses import dataclass

from torch import fx

from ..tracing import layout


@dataclass(frozen=True)
class Outputs:
    """Where the graph passes through the model's outputs.

    Attributes:
        tangent: node of J v [rows, ...].
        times: node of H_L J v, of the same shape.
    """

    tangent: fx.Node
    times: fx.Node

    @property
    def rows(self) -> int:
        """Rows of the chunk; of sequences the positions, where the outputs are counted so."""
        return layout(self.tangent)[0][0]

    @property
    def width(self) -> int:
        """Outputs per row."""
        return math.prod(layout(self.tangent)[0][1:])


@dataclass(frozen=True)
class Cut:
    """A place where everything of a block passes through.

    Attributes:
        tangent: node of z, the tangent [rows, ...].
        cotangent: node of the gradient in it, of the same shape.
        outputs: what lies behind.
    """

    tangent: fx.Node
    cotangent: fx.Node
    outputs: Outputs

    @property
    def width(self) -> int:
        """Entries per row."""
        return math.prod(layout(self.tangent)[0][1:])
