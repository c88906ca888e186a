"""The diagonal of the empirical Fisher matrix (Martens 2010)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...objective import Chunk, LossOfOutputs, Objective, cut, loss_reduction, row_normalizers, row_terms
from ..linearization import Linearization
from .base import Apply, Estimate, Preconditioner, check_exponent, check_whole, decay_of, diagonal_inverse
from .example_gradients import running_statistics, squared_gradients


@dataclass(frozen=True, kw_only=True)
class EmpiricalFisher(Preconditioner):
    """M = (D + wd + lambda)^exponent, D the weighed sum of the squared gradients of single examples.

    Martens 2010, "Deep learning via Hessian-free optimization", Section 4.7. The gradients are those of the targets
    given, so that D follows the residuals and not the curvature: where the fit is good it is small.

    An example i whose loss is a mean over t_i terms (the elements of its squared error, the positions of its
    sequence) has the log-likelihood t_i l_i, and enters as D = sum_i w_i t_i g_i^2 with g_i the gradient of l_i and
    w_i the example's weight in the objective: with independent terms this has the scale of the Gauss-Newton matrix of
    the same objective, whether the loss takes a mean or a sum. With one term an example it is sum_i w_i g_i^2.

    Linear layers with inputs [rows, columns] cost one gradient. The gradients in other parameters are computed one by
    one in one pass (`torch.func.vmap`), at about two gradients for a convolutional network; what vmap refuses, such as
    recurrent layers, goes example by example, at the cost of a small gradient each, and a warning says so. Batch norm
    in training mode ties the examples together; it runs on its running statistics here. With dropout each example has
    a mask of its own. There are no examples in an objective made by `from_forward`.

    Attributes:
        exponent: of the whole diagonal, > 0 and <= 1. Default 0.75, Martens' choice.
        every: steps after which D is estimated anew. Default 1.
        chunk: examples whose gradients are held at once where they are computed one by one. Default: as many as a
            quarter of the free memory and 256 MiB hold, at most 128.

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

        def term(chunk: Chunk, index: int) -> tuple[Tensor]:
            weights, shares = _weights(objective.program.loss, chunk, reduction)
            return (squared_gradients(objective, space, chunk, weights, shares, index, self.chunk),)

        return {"diagonal": objective.sum(term)[0].add_(decay_of(curved))}

    def inverse(self, estimate: Estimate, damping: float | Tensor, blocks: Sequence[int]) -> Apply:
        """R -> (D + wd + lambda)^-exponent r, with the floor of `diagonal_inverse`."""
        return diagonal_inverse(estimate["diagonal"], damping, self.exponent, blocks)


def _reduction(objective: Objective) -> str:
    """How the loss reduces its examples, "mean" or "sum"; a loss that need not say is asked by its values.

    Raises:
        ValueError: there are several chunks or ranks, and the loss does not say.
    """
    loss, chunk = objective.program.loss, objective.chunks[0]
    several = len(objective.chunks) * objective.reduce.size > 1
    if several or _says(loss) or chunk.rows == 1:
        return loss_reduction(loss) if several or _says(loss) else "mean"
    point = {name: p.detach() for name, p in objective.model.named_parameters()}
    half = chunk.rows // 2
    bounds = ((0, chunk.rows), (0, half), (half, chunk.rows))
    values = []
    with torch.enable_grad(), running_statistics(objective.model):
        for start, stop in bounds:
            with objective.random_numbers(0):
                loss, _ = objective.forward_pass(cut(chunk, start, stop), point, objective.buffers())
            values.append(float(loss.detach()))  # of derivatives inside, it has a graph
    whole, first, second = values
    mean = (half * first + (chunk.rows - half) * second) / chunk.rows
    return "sum" if math.fabs(first + second - whole) < math.fabs(mean - whole) else "mean"


def _says(loss: object) -> bool:
    """Whether the loss says how it reduces its examples."""
    try:
        loss_reduction(loss)
    except ValueError:
        return False
    return True


def _weights(loss: object, chunk: Chunk, reduction: str) -> tuple[Tensor, Tensor]:
    """Factor on each example's squared gradient in the chunk's D, and on its loss in the chunk's loss, both [rows].

    The first is zero where no target counts.
    """
    terms, normalizers = row_terms(loss, chunk), row_normalizers(loss, chunk)
    if reduction == "sum":  # an example's loss is that of a mean times its normalizer
        shares, weights = torch.ones_like(terms), terms / normalizers
    else:
        shares = normalizers / normalizers.sum()
        weights = terms * shares
    return torch.where(normalizers > 0, weights, 0), shares
