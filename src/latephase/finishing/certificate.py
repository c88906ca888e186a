"""Where a model stands: how far from a minimum, and how curved the loss is there."""

import math
from dataclasses import dataclass

import torch

from ..curvature import linearize
from ..diagnosis import projection
from ..objective import Objective

PRODUCTS = 30
"""With the Gauss-Newton matrix: enough for the ends of its spectrum and most of the Newton decrement."""


@dataclass(frozen=True)
class Certificate:
    """What Laplace approximations and stopping rules ask of a model.

    Attributes:
        rows: of the training data that it was looked at on.
        loss: there, with the L2 term.
        gradient_norm: Euclidean norm of the gradient.
        decrement: Newton decrement sqrt(g'C^-1 g) with the Gauss-Newton matrix C, in the Krylov space of the gradient:
            a lower bound, from `PRODUCTS` products. Half of its square is what the quadratic model could still gain.
        lowest: smallest Ritz value of C in that space; C has an eigenvalue that is as small.
        highest: largest Ritz value; C has an eigenvalue that is as large.
    """

    rows: int
    loss: float
    gradient_norm: float
    decrement: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        """One sentence."""
        return (
            f"On {self.rows:,} training rows: loss {self.loss:.4g}, gradient norm {self.gradient_norm:.2g}, Newton "
            f"decrement at least {self.decrement:.2g}, Ritz values of the Gauss-Newton matrix {self.lowest:.2g} to "
            f"{self.highest:.2g}."
        )


def certify(objective: Objective) -> Certificate:
    """The certificate of the model as it is; nothing of it changes.

    Args:
        objective: on training data.
    """
    curved = linearize(objective)
    rows = sum(chunk.rows for chunk in objective.chunks)
    gradient, norm = curved.gradient, float(curved.gradient.norm())
    if not (norm > 0 and math.isfinite(norm)):
        return Certificate(rows, float(curved.loss), norm, 0.0 if norm == 0 else math.nan, math.nan, math.nan)
    projected = projection(curved.matvec, gradient, PRODUCTS)
    if not bool(projected.isfinite().all()):
        return Certificate(rows, float(curved.loss), norm, math.nan, math.nan, math.nan)
    values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    curving = values > values[-1] * torch.finfo(gradient.dtype).eps * len(values)
    squared = norm**2 * float((vectors[0, curving] ** 2 / values[curving]).sum())
    return Certificate(rows, float(curved.loss), norm, math.sqrt(squared), float(values[0]), float(values[-1]))
