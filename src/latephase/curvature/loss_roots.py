"""Square roots of the Hessian of a loss in the outputs: of torch's own in closed form, of others example by example."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..chunks import _setting
from ..randomness import random_signs
from .loss_hessians import Product, _cross_entropy, _formula, _position_weights, hessian_product


@torch.no_grad()
def hessian_root(loss: Any, outputs: Sequence[Tensor], targets: Any) -> Product | None:
    """The product u -> S u with a matrix S for which S S' is the Hessian of loss(outputs, targets) in the outputs.

    For the losses of `hessian_product`, where their Hessian is positive semi-definite; with two outputs of
    `nn.GaussianNLLLoss`, S S' is their Fisher information as it is there. All but that of cross-entropy are diagonal.
    For cross-entropy S = sqrt(s) (diag(sqrt(p)) - p sqrt(p)'), since the probabilities p of a position add up to one.

    Args:
        loss: the objective's loss.
        outputs: the tensors that the loss gets.
        targets: what the loss gets as targets.

    Returns:
        A function linear in u, tensors in the shapes of the outputs, whose results have shape and dtype of u; None for
        any other loss, or where a second derivative is negative.
    """
    product = hessian_product(loss, outputs, targets)
    if product is None:
        return None
    if _formula(loss) is _cross_entropy:
        return _root_of_cross_entropy(loss, outputs[0], targets)
    wide = [torch.ones_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in outputs]
    second = product(wide)
    if any(bool((each < 0).any()) for each in second):
        return None
    roots = [each.sqrt() for each in second]
    return lambda u: [(root * v).to(v.dtype) for root, v in zip(roots, u, strict=True)]


def root_of_any(loss: Any, outputs: Sequence[Tensor], targets: Any) -> Product | None:
    """As `hessian_root`, and for other losses of one output, by autograd, where they are convex and examples are apart.

    The Hessian of a sum or mean over examples has a block for each, [C, C] for C numbers of an example's output. All
    blocks come from C derivatives of the gradient, and S from their eigenvectors. That there is nothing beside the
    blocks is tried with a random vector.

    Args:
        loss: the objective's loss.
        outputs: the tensors that the loss gets.
        targets: what the loss gets as targets.

    Returns:
        As `hessian_root`; None as well where C exceeds `MOST_COLUMNS`, or where the Hessian is zero.
    """
    known = hessian_root(loss, outputs, targets)
    if known is not None or len(outputs) != 1 or hessian_product(loss, outputs, targets) is not None:
        return known
    x = outputs[0].detach()
    x = x.to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
    if not x.dim() or not 0 < x[:1].numel() <= MOST_COLUMNS:
        return None
    with torch.enable_grad():
        value = loss(x, targets)
        slope = torch.autograd.grad(value, x, create_graph=True)[0] if value.requires_grad else value
    if not slope.requires_grad:  # linear
        return None
    blocks = _blocks(slope, x)
    values, vectors = torch.linalg.eigh(blocks)
    largest = values.abs().max()
    if not bool(largest > 0) or bool((values < -ROUNDING * largest).any()) or not _is_apart(slope, x, blocks):
        return None
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    return lambda u: [(root @ u[0].to(root.dtype).reshape(*root.shape[:2], 1)).view_as(u[0]).to(u[0].dtype)]


MOST_COLUMNS = 256
"""Numbers of an example's output up to which blocks are computed: a derivative each, and their decomposition."""
ROUNDING = 1e-4
"""Relative to the largest eigenvalue, what in float32 may be rounding: second derivatives of composed losses lose up to
three of its seven digits."""


def _products(slope: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """H v, in the shape of x."""
    (product,) = torch.autograd.grad(slope, x, v, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if product is None else product


def _blocks(slope: Tensor, x: Tensor) -> Tensor:
    """The examples' blocks [N, C, C], made symmetric."""
    rows, columns = len(x), x[:1].numel()
    found = []
    for column in range(columns):
        unit = torch.zeros_like(x)
        unit.view(rows, columns)[:, column] = 1
        found.append(_products(slope, x, unit).reshape(rows, columns))
    blocks = torch.stack(found, dim=2)
    return 0.5 * (blocks + blocks.mT)


def _is_apart(slope: Tensor, x: Tensor, blocks: Tensor) -> bool:
    """Whether the Hessian is nothing but the examples' blocks: a product with random signs says so."""
    v = random_signs(x, torch.Generator(x.device).manual_seed(0))
    expected = (blocks @ v.reshape(*blocks.shape[:2], 1)).view_as(x)
    return bool((_products(slope, x, v) - expected).abs().max() <= ROUNDING * blocks.abs().max() * blocks.shape[1])


def _root_of_cross_entropy(loss: Any, outputs: Tensor, targets: Tensor) -> Product | None:
    logits = outputs.detach().to(torch.promote_types(outputs.dtype, torch.float32))
    dim = min(1, logits.dim() - 1)
    mean = _setting(loss, "reduction", "mean") == "mean"
    weights = _position_weights(loss, logits, targets.detach(), dim, mean)
    if bool((weights < 0).any()):
        return None
    probabilities = logits.softmax(dim)
    root, weights = probabilities.sqrt(), weights.sqrt()

    def multiply(u: list[Tensor]) -> list[Tensor]:
        v = root * u[0]
        return [(weights * torch.addcmul(v, probabilities, v.sum(dim, keepdim=True), value=-1)).to(u[0].dtype)]

    return multiply
