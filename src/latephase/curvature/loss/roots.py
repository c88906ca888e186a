"""Square roots of the Hessian of a loss in the outputs: of torch's own in closed form, of others example by example."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...objective import as_wide, as_written, copied, is_exhaustion, random_signs, setting
from .hessians import Product, _cross_entropy, _formula, _position_weights, hessian_product


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


def root_of_any(loss: Any, outputs: Sequence[Tensor], targets: Any, is_alone: bool = True) -> Product | None:
    """As `hessian_root`, and for losses of one's own, by autograd, where they are convex and examples are apart.

    The Hessian of a sum or mean over examples has a block for each, [C, C] for C numbers of an example's output. All
    blocks come from C derivatives of the gradient, and S from their eigenvectors. That there is nothing beside the
    blocks is tried with a random vector.

    Args:
        loss: the objective's loss.
        outputs: the tensors that the loss gets, [N, ...].
        targets: what the loss gets as targets.
        is_alone: whether the loss gets one tensor as it is, in no container; others are left to `hessian_root`.

    Returns:
        As `hessian_root`. None as well where C exceeds `MOST_COLUMNS` or the blocks have more than `MOST_NUMBERS`
        numbers, where the loss has no second derivative, and where that is zero near the targets and near zero, too, as
        that of absolute errors is. Where it is not finite, the results are not, either.
    """
    known = hessian_root(loss, outputs, targets)
    if known is not None or not is_alone or len(outputs) != 1 or hessian_product(loss, outputs, targets) is not None:
        return known
    x = outputs[0].detach().to(torch.promote_types(outputs[0].dtype, torch.float32))
    columns = x[:1].numel() if x.dim() else 0
    if not 0 < columns <= MOST_COLUMNS or x.numel() * columns > MOST_NUMBERS:
        return None
    curved = _blocks(loss, x, targets)
    if curved is None:
        return None
    blocks, is_apart = curved
    largest = blocks.abs().max()
    if not bool(largest.isfinite()):
        return lambda u: [torch.full_like(u[0], math.nan)]
    if not is_apart or (largest == 0 and not _bends_elsewhere(loss, x, targets)):
        return None
    values, vectors = torch.linalg.eigh(blocks)
    if bool((values < -ROUNDING * largest).any()):
        return None
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    return lambda u: [(root @ u[0].to(root.dtype).reshape(*root.shape[:2], 1)).reshape(u[0].shape).to(u[0].dtype)]


def diagonal_root(
    curvature: Callable[[Sequence[Tensor]], Sequence[Tensor]], outputs: Sequence[Tensor]
) -> Product | None:
    """As `hessian_root`, of products u -> H_L u with a diagonal H_L; None where it is not, or has a negative entry.

    The diagonal is H_L 1; that there is nothing beside it is tried with a random vector.

    Args:
        curvature: the products.
        outputs: the tensors that H_L is about.
    """
    second = [each.detach() for each in curvature([torch.ones_like(x) for x in outputs])]
    generator = torch.Generator().manual_seed(0)
    tried = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outputs]
    beside = [found - own * u for found, own, u in zip(curvature(tried), second, tried, strict=True)]
    eps = max((torch.finfo(x.dtype).eps for x in outputs), default=0.0)
    largest = max((float(each.abs().max()) for each in second if each.numel()), default=0.0)
    allowed = 3 * eps**0.5 * largest
    if any(bool((each.abs() > allowed).any()) for each in beside) or any(bool((d < -allowed).any()) for d in second):
        return None
    roots = [each.clamp(min=0).sqrt() for each in second]
    return lambda u: [root * v for root, v in zip(roots, u, strict=True)]


MOST_COLUMNS = 64
"""Numbers of an example's output up to which blocks are computed: a derivative each, and their decomposition, half a
second for 1,000 examples of so many."""
MOST_NUMBERS = 2**25
"""Of all blocks together: 128 MiB in float32."""
ROUNDING = 1e-4
"""Relative to the largest entry, what in float32 may be rounding: second derivatives of composed losses lose up to
three of its seven digits."""


def _blocks(loss: Any, x: Tensor, targets: Any) -> tuple[Tensor, bool] | None:
    """The examples' blocks [N, C, C] of the Hessian, made symmetric, and whether it is nothing but them."""
    x = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    rows, columns = len(x), x[:1].numel()

    def product(v: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(slope, x, v.view_as(x), retain_graph=True, allow_unused=True)
        return (torch.zeros_like(x) if found is None else found).reshape(rows, columns)

    try:
        with torch.enable_grad(), as_written():
            value = loss(x.clone(), as_wide(copied(targets), x))  # a loss may work in place
            slope = torch.autograd.grad(value, x, create_graph=True)[0]
        units = torch.eye(columns, dtype=x.dtype, device=x.device)
        blocks = torch.stack([product(unit.repeat(rows)) for unit in units], dim=2)
        signs = random_signs(x.detach(), torch.Generator(x.device).manual_seed(0)).reshape(rows, columns)
        beside = product(signs) - (blocks @ signs.unsqueeze(2)).squeeze(2)
    except RuntimeError as error:  # no second derivative, or none at all
        if is_exhaustion(error):
            raise
        return None
    is_apart = bool(beside.abs().max() <= ROUNDING * columns * blocks.abs().max())
    return 0.5 * (blocks + blocks.mT), is_apart


def _bends_elsewhere(loss: Any, x: Tensor, targets: Any) -> bool:
    """Whether a loss without curvature here has some near zero or near the targets: it is not linear in parts."""
    noise = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    places = [noise]
    if isinstance(targets, Tensor) and targets.is_floating_point() and targets.shape == x.shape:
        places.append(targets.to(x) + noise)
    found = (_blocks(loss, place, targets) for place in places)
    return any(curved is not None and bool(curved[0].abs().max() > 0) for curved in found)


def _root_of_cross_entropy(loss: Any, outputs: Tensor, targets: Tensor) -> Product | None:
    factors = root_factors(loss, outputs, targets)
    if factors is None:
        return None
    probabilities, root, weights, dim = factors

    def multiply(u: list[Tensor]) -> list[Tensor]:
        v = root * u[0]
        return [(weights * torch.addcmul(v, probabilities, v.sum(dim, keepdim=True), value=-1)).to(u[0].dtype)]

    return multiply


def root_factors(loss: Any, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, int] | None:
    """Of cross-entropy p, sqrt(p), sqrt(s) and the dimension of the classes; None where a weight s is negative."""
    logits = outputs.detach().to(torch.promote_types(outputs.dtype, torch.float32))
    dim = min(1, logits.dim() - 1)
    mean = setting(loss, "reduction", "mean") == "mean"
    weights = _position_weights(loss, logits, targets.detach(), dim, mean)
    if bool((weights < 0).any()):
        return None
    probabilities = logits.softmax(dim)
    return probabilities, probabilities.sqrt(), weights.sqrt(), dim
