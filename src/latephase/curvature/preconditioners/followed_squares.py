"""Squared gradients of single examples from one backward pass that is followed example by example."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...objective import is_exhaustion
from ..rows import Terms, follow
from .graph_readers import leaves_of, readers_of

AT_ONCE = 2**20
"""Numbers of gradients that are in memory at a time: more gain no speed."""


@torch.no_grad()
def followed_squares(
    loss: Tensor, outputs: Sequence[Tensor], leaves: Sequence[Tensor], factors: Tensor, dtype: torch.dtype
) -> list[Tensor] | None:
    """Sum over the examples of factor times squared gradient in each leaf, flat; None where that cannot be followed.

    The gradient of example i is made of whatever it adds to the sum over examples that a backward pass makes for a
    leaf (`rows.follow`): of a layer's weight one product of slope and input for each of its uses, those in derivatives
    of the network inside the pass included.

    Args:
        loss: with a graph that is kept, of examples that stand apart.
        outputs: of which it is made, dimension 0 counting the examples.
        leaves: of the graph.
        factors: on the squared gradient of each example's part of the loss [rows].
        dtype: of the result.
    """
    rows = len(factors)
    if not outputs or any(x.shape[:1] != (rows,) for x in outputs):
        return None
    if not leaves_of(readers_of([loss], until=outputs)).keys().isdisjoint(map(id, leaves)):
        return None  # a part of the loss belongs to no example's outputs
    slopes = torch.autograd.grad(loss, outputs, retain_graph=True, materialize_grads=True)
    try:
        return [
            _squares(terms, leaf, factors, dtype)
            for terms, leaf in zip(_terms(outputs, leaves, slopes), leaves, strict=True)
        ]
    except Exception as error:  # whatever an unknown layer may raise: other ways tell whether the model is wrong
        if is_exhaustion(error):
            raise
        return None


def _terms(outputs: Sequence[Tensor], leaves: Sequence[Tensor], slopes: Sequence[Tensor]) -> list[Terms | None]:
    if len(outputs[0]) > 1:
        return follow(outputs, leaves, slopes)
    gradients = torch.autograd.grad(outputs, leaves, slopes, retain_graph=True, materialize_grads=True)
    return [Terms(values=[gradient.unsqueeze(0)]) for gradient in gradients]


def _squares(terms: Terms | None, leaf: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(leaf.dtype, dtype)
    found = torch.zeros(leaf.numel(), dtype=wide, device=leaf.device)
    if terms is None:
        return found
    step = max(AT_ONCE // max(leaf.numel(), 1), 1)
    for start in range(0, len(factors), step):
        some = slice(start, min(start + step, len(factors)))
        gradients = terms.of(some, [leaf.numel()]).to(wide)
        found += factors[some].to(found) @ gradients.square_()
    return found
