"""The root S of the Hessian of a pass's loss in its outputs, whichever the form of the objective."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...objective import FreeForm, LossOfOutputs, WithHidden, name_of
from ..loss import Product, diagonal_root, loss_curvature, over_diagonal, root_of_any, unrooted
from ..structural_damping import SLOPES, StructuralLoss

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class LossRoot:
    """S with S S' the Hessian of a loss in the outputs.

    Attributes:
        product: u -> S u, in the shapes of the outputs.
        residual: slopes of the loss in the outputs -> r with S r the slopes; None where the loss does not tell it.
    """

    product: Product
    residual: Callable[[Tensors], list[Tensor] | None]


def root_of_pass(
    program: LossOfOutputs | FreeForm, loss: Tensor, outputs: Tensors, tree: Any, targets: Any
) -> LossRoot:
    """The root of a pass.

    Args:
        program: what computed it.
        loss: scalar, with its graph.
        outputs: the tensors of the tree that depend on the parameters.
        tree: what the loss got, or what `from_forward` returned beside it.
        targets: of the chunk.

    Raises:
        ValueError: no root is known.
    """
    if isinstance(program, FreeForm):
        return _of_free_form(program, loss, outputs)
    if isinstance(program.loss, StructuralLoss):
        return _with_hidden(program.loss, outputs, tree, targets)
    return _of_outputs(program, outputs, isinstance(tree, Tensor), targets)


def flattened(found: Tensors, has_examples: bool) -> Tensor:
    """Numbers in the shapes of the outputs as one vector, example by example where the outputs are rows of examples."""
    if has_examples:
        return torch.cat([each.reshape(len(each), -1) for each in found], dim=1).reshape(-1).detach()
    return torch.cat([each.reshape(-1) for each in found]).detach()


def _of_free_form(program: FreeForm, loss: Tensor, outputs: Tensors) -> LossRoot:
    root = diagonal_root(loss_curvature(program, None, loss, outputs), outputs)
    if root is None:
        raise ValueError(
            "an objective made by from_forward has rows where its loss is a sum of convex functions of single "
            "numbers of the outputs, as that of squared residuals is, and this one is not: return the residuals "
            "as outputs, or write Objective(model, loss, data, forward=...) or Objective.from_residuals"
        )
    return LossRoot(root, lambda slopes: over_diagonal(root, outputs, slopes))


def _of_outputs(program: LossOfOutputs, outputs: Tensors, is_alone: bool, targets: Any) -> LossRoot:
    root = root_of_any(program.loss, outputs, targets, is_alone)
    if root is None:
        raise ValueError(
            f"no root of the Hessian of {name_of(program.loss)} in the outputs is known, so that there are no rows: it "
            "must be convex in the outputs and, where it is not one of torch's squared error, cross-entropy, binary "
            "cross-entropy with logits, Poisson or Gaussian negative log-likelihood, a mean or sum over examples with "
            "second derivatives and at most 64 outputs each; use products (matvec)"
        )
    return LossRoot(root, lambda slopes: unrooted(program.loss, root, outputs, targets, slopes))


def _with_hidden(loss: StructuralLoss, outputs: Tensors, tree: WithHidden, targets: tuple[Tensor, ...]) -> LossRoot:
    """Of a loss with structural damping: that of the loss, and beside it sqrt(strength phi'(h)) at hidden units h."""
    own, strength, *factors = targets
    count = sum(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(tree.outputs))
    seen, hidden = list(outputs[:count]), [h.detach() for h in outputs[count:]]
    factor = float(factors[0]) if factors else 0.0  # of the loss; none where no target counts
    inner = _of_outputs(loss.program, seen, isinstance(tree.outputs, Tensor), own) if factor and seen else None
    roots = [(strength.to(h.dtype) * SLOPES[tree.nonlinearity](h)).sqrt() for h in hidden]

    def product(u: list[Tensor]) -> list[Tensor]:
        if inner is None:
            found = [torch.zeros_like(v) for v in u[:count]]
        else:
            found = [math.sqrt(factor) * v for v in inner.product(list(u[:count]))]
        return [*found, *(root * v for root, v in zip(roots, u[count:], strict=True))]

    def residual(slopes: Tensors) -> list[Tensor] | None:
        if inner is None:
            found = [torch.zeros_like(x) for x in seen]
        else:
            found = inner.residual([slope / factor for slope in slopes[:count]])
            found = None if found is None else [math.sqrt(factor) * r for r in found]
        # There is no slope in the hidden units, which are held where they are.
        return None if found is None else [*found, *(torch.zeros_like(h) for h in hidden)]

    return LossRoot(product, residual)
