"""The diagonal of the empirical Fisher matrix (Martens 2010)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...chunks import _CLASSES, Chunk, _is_one_of, _setting, loss_reduction, row_normalizers, row_terms
from ...objective import Objective
from ...program import LossOfOutputs
from ..linearization import Linearization
from .base import Apply, Estimate, Preconditioner, check_exponent, check_whole, decay_of, diagonal_inverse
from .example_gradients import squared_gradients


@dataclass(frozen=True, kw_only=True)
class EmpiricalFisher(Preconditioner):
    """M = (D + wd + lambda)^exponent, D the weighed sum of the squared gradients of single examples.

    Martens 2010, "Deep learning via Hessian-free optimization", Section 4.7. The gradients are those of the targets
    given, so that D follows the residuals and not the curvature: where the fit is good it is small.

    An example i whose loss is a mean over t_i terms (the elements of its squared error, the positions of its
    sequence) has the log-likelihood t_i l_i, and enters as D = sum_i w_i t_i g_i^2 with g_i the gradient of l_i and
    w_i the example's weight in the objective: with independent terms this has the scale of the Gauss-Newton matrix of
    the same objective, whether the loss takes a mean or a sum. With one term an example it is sum_i w_i g_i^2.

    Costs about two gradients where `torch.func.vmap` takes the model; what it refuses goes example by example, and a
    warning says so. Batch norm in training mode ties the examples together; it runs on its running statistics here.
    With dropout each example has a mask of its own. There are no examples in an objective made by `from_forward`.

    Attributes:
        exponent: of the whole diagonal, > 0 and <= 1. Default 0.75, Martens' choice.
        every: steps after which D is estimated anew. Default 1.
        chunk: examples whose gradients are computed and held at once. Default: as many as fit into a quarter of the
            free memory, at most 256.

    Raises:
        ValueError: a setting that is none.
    """

    exponent: float = 0.75
    every: int = 1
    chunk: int | None = None

    def __post_init__(self):
        check_exponent(self.exponent)
        check_whole("every", self.every)
        check_whole("chunk", self.chunk, optional=True)

    def estimate(self, curved: Linearization, blocks: Sequence[int]) -> Estimate:
        """The diagonal D + wd [P], as "diagonal".

        Raises:
            ValueError: an objective made by `from_forward`, or batch norm without running statistics.
        """
        objective, space = curved.objective, curved.space
        if not isinstance(objective.program, LossOfOutputs):
            raise ValueError(
                "an objective made by from_forward has no examples, so that there is no empirical Fisher matrix; use "
                "the preconditioner 'ggn_diagonal' or 'nystrom'"
            )
        reduction = _reduction(objective)

        def term(chunk: Chunk, index: int) -> tuple[Tensor, Tensor]:
            weights = _weights(objective.program.loss, chunk, reduction)
            return squared_gradients(objective, space, chunk, weights, index, self.chunk)

        squares, losses = objective.sum(term)
        if reduction is None:  # one chunk of one rank
            squares = squares * _factor(float(losses), float(curved.loss - objective.weight_decay.value()), objective)
        return {"diagonal": squares.add_(decay_of(curved))}

    def inverse(self, estimate: Estimate, damping: float | Tensor, blocks: Sequence[int]) -> Apply:
        """R -> (D + wd + lambda)^-exponent r, with the floor of `diagonal_inverse`."""
        return diagonal_inverse(estimate["diagonal"], damping, self.exponent, blocks)


def _reduction(objective: Objective) -> str | None:
    """How the loss reduces its examples; None where it does not say and need not."""
    try:
        return loss_reduction(objective.program.loss)
    except ValueError:
        if len(objective.chunks) * objective.reduce.size > 1:
            raise
        return None


def _weights(loss: object, chunk: Chunk, reduction: str | None) -> Tensor:
    """The factor on each example's squared gradient in the chunk's D [rows]; zero where no target counts."""
    terms, normalizers = row_terms(loss, chunk) / _term_weight(loss), row_normalizers(loss, chunk)
    if reduction == "sum":  # the gradient is that of normalizer times mean
        weights = terms / normalizers
    elif reduction == "mean":
        weights = terms * normalizers / normalizers.sum()
    else:
        weights = torch.full_like(terms, 1 / chunk.rows)
    return torch.where(normalizers > 0, weights, 0)


def _term_weight(loss: object) -> float:
    """What a term of an example counts for, where the loss weighs elements: the mean weight, each by itself."""
    weight = _setting(loss, "weight", None)
    if weight is None or not torch.is_tensor(weight) or _is_one_of(loss, _CLASSES):
        return 1.0
    weight = weight.double()
    return float(weight.square().sum() / weight.sum())


def _factor(losses: float, loss: float, objective: Objective) -> float:
    """On the mean of the squares: 1 where the loss is a mean over its examples, their number where it is a sum.

    A loss that does not say is asked by its value, which is compared with the sum of the examples' losses.
    """
    rows = objective.chunks[0].rows
    return float(rows) if math.fabs(losses - loss) < math.fabs(losses / rows - loss) else 1.0
