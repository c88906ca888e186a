"""Square roots of the Hessian of torch's own losses in the outputs, in closed form."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..chunks import _setting
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
