"""The residuals that a loss is made of, as far as its gradient and the root of its Hessian know them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .hessians import Product, _cross_entropy, _formula, _squared_error
from .roots import root_factors


def has_constant_root(loss: Any) -> bool:
    """Whether S is the same at all outputs, as that of a squared error is."""
    return _formula(loss) is _squared_error


@torch.no_grad()
def unrooted(
    loss: Any, root: Product, outputs: Sequence[Tensor], targets: Any, slopes: Sequence[Tensor]
) -> list[Tensor] | None:
    """Numbers r with S r the slopes of the loss in the outputs, S S' its Hessian: of a squared error the residuals.

    A step that is solved for from r and the rows S'J does not lose the digits that the gradient J'S r has lost.

    Args:
        loss: the objective's loss.
        root: u -> S u, see `hessian_root`.
        outputs: the tensors that the loss gets.
        targets: what the loss gets as targets.
        slopes: gradient of the loss in each output.

    Returns:
        Tensors in the shapes of the outputs; None where S is not known by its numbers, or the slopes do not follow
        from it, as where a probability has underflown.
    """
    formula = _formula(loss)
    if formula is None:
        return None
    if formula is _cross_entropy:  # S = sqrt(s) (diag(sqrt p) - p sqrt(p)'), and p - y adds up to zero
        factors = root_factors(loss, outputs[0], targets)
        if factors is None:
            return None
        _, roots, weights, _ = factors
        return _divided(slopes, [(roots * weights).to(outputs[0].dtype)])
    return over_diagonal(root, outputs, slopes)


def over_diagonal(root: Product, outputs: Sequence[Tensor], slopes: Sequence[Tensor]) -> list[Tensor] | None:
    """As `unrooted`, where S is diagonal."""
    return _divided(slopes, root([torch.ones_like(x) for x in outputs]))


def _divided(slopes: Sequence[Tensor], diagonal: Sequence[Tensor]) -> list[Tensor] | None:
    found = [torch.where(g == 0, 0.0, g / s).detach() for g, s in zip(slopes, diagonal, strict=True)]
    return found if all(bool(each.isfinite().all()) for each in found) else None
