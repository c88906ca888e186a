"""Products with the Hessian of torch's own losses in the outputs, in closed form."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...objective import setting

Product = Callable[[list[Tensor]], list[Tensor]]


@torch.no_grad()
def hessian_product(loss: Any, outputs: Sequence[Tensor], targets: Any) -> Product | None:
    """The product u -> H_L u with the Hessian of loss(outputs, targets) in the outputs, for a loss that is known.

    Known are cross-entropy, negative log-likelihood of log-probabilities, squared error, binary cross-entropy with
    logits, and the Poisson and Gaussian negative log-likelihoods: the module (its exact class), the functional, or a
    `functools.partial` that sets keyword arguments of either, with reduction "mean" or "sum".

    Of `nn.GaussianNLLLoss` with the two outputs (mean, var) the Hessian is indefinite. The product is then with its
    expectation over targets drawn from N(mean, var), the Fisher information: per element diag(1 / var, 1 / (2 var^2)),
    positive definite, which takes the place of H_L in the generalized Gauss-Newton matrix (Martens 2020, "New insights
    and perspectives on the natural gradient method", sections 8 and 9).

    Args:
        loss: the objective's loss.
        outputs: the tensors that the loss gets; one, or (mean, var).
        targets: what the loss gets as targets.

    Returns:
        A function linear in u, whose results have shape and dtype of u; None for any other loss.
    """
    formula = _formula(loss)
    reduction = setting(loss, "reduction", "mean")
    if formula is None or reduction not in ("mean", "sum") or not isinstance(targets, Tensor):
        return None
    if any(setting(loss, name, None) is not None for name in ("size_average", "reduce")):
        return None  # deprecated arguments that override the reduction
    if not all(output.is_floating_point() for output in outputs):
        return None
    # Detached, for forward mode too. Half precision is computed in float32; only the result is rounded.
    wide = [output.detach().to(torch.promote_types(output.dtype, torch.float32)) for output in outputs]
    if len(wide) == 2 and formula is _gaussian and isinstance(loss, nn.GaussianNLLLoss):
        return _gaussian_fisher(loss, wide, targets.detach(), reduction == "mean")
    return formula(loss, wide[0], targets.detach(), reduction == "mean") if len(wide) == 1 else None


def _formula(loss: Any) -> Callable[[Any, Tensor, Tensor, bool], Product | None] | None:
    while isinstance(loss, functools.partial):
        if loss.args:
            return None
        loss = loss.func
    kind = loss
    if isinstance(loss, nn.Module):
        if "forward" in vars(loss) or loss._forward_hooks or loss._forward_pre_hooks:
            return None  # what is called is not only the class's own forward
        kind = type(loss)
    return next((formula for formula, *kinds in _FORMULAS if any(kind is own for own in kinds)), None)


def _diagonal(*coefficients: Tensor) -> Product:
    def multiply(u: list[Tensor]) -> list[Tensor]:
        return [(c * v).to(v.dtype) for c, v in zip(coefficients, u, strict=True)]

    return multiply


def _gathered(second: Tensor, elements: torch.Size, size: torch.Size, mean: bool) -> Tensor:
    """Second derivatives of the loss's elements, divided for a mean, and summed where one output has several."""
    if mean:
        second = second / math.prod(elements)
    return second.expand(elements).sum_to_size(size)


def _cross_entropy(loss: Any, logits: Tensor, targets: Tensor, mean: bool) -> Product:
    """Per position, s (diag(p) - p p') with the probabilities p and a number s."""
    dim = min(1, logits.dim() - 1)
    probabilities = logits.softmax(dim)
    scaled = _position_weights(loss, logits, targets, dim, mean) * probabilities

    def multiply(u: list[Tensor]) -> list[Tensor]:
        v = scaled * u[0]
        return [torch.addcmul(v, probabilities, v.sum(dim, keepdim=True), value=-1).to(u[0].dtype)]

    return multiply


def _position_weights(loss: Any, logits: Tensor, targets: Tensor, dim: int, mean: bool) -> Tensor:
    """The summed weight s of a position's log-probabilities in the loss, with a class dimension of length 1."""
    weight, smoothing = setting(loss, "weight", None), setting(loss, "label_smoothing", 0.0)
    weight = logits.new_ones(logits.shape[dim]) if weight is None else weight.to(logits.dtype)
    uniform = smoothing * weight.mean()
    if targets.shape == logits.shape:  # class probabilities
        by_class = weight.reshape(-1, *[1] * (logits.dim() - dim - 1))
        own = (targets * by_class).sum(dim, keepdim=True)
        s = (1 - smoothing) * own + uniform
        return s / s.numel() if mean else s
    targets = targets.long()
    counted = targets != setting(loss, "ignore_index", -100)
    own = weight[torch.where(counted, targets, 0)]
    s = (1 - smoothing) * own + uniform
    if mean:
        s = s / torch.where(counted, own, 0).sum()
    return torch.where(counted, s, 0).unsqueeze(dim)


def _linear(loss: Any, outputs: Tensor, targets: Tensor, mean: bool) -> Product:
    return lambda u: [torch.zeros_like(v) for v in u]


def _squared_error(loss: Any, outputs: Tensor, targets: Tensor, mean: bool) -> Product:
    elements = torch.broadcast_shapes(outputs.shape, targets.shape)
    weight = setting(loss, "weight", None)
    if weight is None:
        return _diagonal(_gathered(outputs.new_full((), 2.0), elements, outputs.shape, mean))
    # torch divides by the sum of the weights as given, before targets broadcast them.
    weight = weight.to(outputs.dtype)
    second = 2 * weight / weight.sum() if mean else 2 * weight
    return _diagonal(_gathered(second, elements, outputs.shape, mean=False))


def _binary_cross_entropy(loss: Any, logits: Tensor, targets: Tensor, mean: bool) -> Product:
    second = logits.sigmoid() * (-logits).sigmoid()
    weight, pos_weight = setting(loss, "weight", None), setting(loss, "pos_weight", None)
    if pos_weight is not None:
        second = second * (1 + (pos_weight - 1) * targets)
    if weight is not None:
        second = second * weight
    return _diagonal(_gathered(second, logits.shape, logits.shape, mean))


def _poisson(loss: Any, outputs: Tensor, targets: Tensor, mean: bool) -> Product:
    if setting(loss, "log_input", True):
        second = outputs.exp()
    else:
        second = targets / (outputs + setting(loss, "eps", 1e-8)).square()
    elements = torch.broadcast_shapes(outputs.shape, targets.shape)
    return _diagonal(_gathered(second, elements, outputs.shape, mean))


def _gaussian(loss: Any, outputs: Tensor, targets: Tensor, mean: bool) -> Product | None:
    """The Hessian in the mean alone, the variances being an argument that the loss holds."""
    var = setting(loss, "var", None)
    if isinstance(var, float):
        var = outputs.new_full((), var)
    elif isinstance(var, Tensor):
        var = _aligned(var.to(outputs.dtype), outputs)
    else:
        return None
    elements = torch.broadcast_shapes(outputs.shape, targets.shape, var.shape)
    return _diagonal(_gathered(_clamped(loss, var).reciprocal(), elements, outputs.shape, mean))


def _gaussian_fisher(loss: Any, outputs: Sequence[Tensor], targets: Tensor, mean: bool) -> Product:
    """The Fisher information in (mean, var); where torch clamps var, it lets the slope pass as if it had not."""
    center, var = outputs
    aligned = _aligned(var, center)
    precision = _clamped(loss, aligned).reciprocal()
    elements = torch.broadcast_shapes(center.shape, targets.shape, aligned.shape)
    in_mean = _gathered(precision, elements, center.shape, mean)
    in_var = _gathered(precision.square() / 2, elements, aligned.shape, mean)
    return _diagonal(in_mean, in_var.reshape(var.shape))


def _aligned(var: Tensor, center: Tensor) -> Tensor:
    """Variances that lack the last dimension get it with length 1, as in torch."""
    return var.unsqueeze(-1) if var.shape != center.shape and var.shape == center.shape[:-1] else var


def _clamped(loss: Any, var: Tensor) -> Tensor:
    return var.clamp(min=setting(loss, "eps", 1e-6))


_FORMULAS = (
    (_cross_entropy, nn.CrossEntropyLoss, F.cross_entropy),
    (_linear, nn.NLLLoss, F.nll_loss),
    (_squared_error, nn.MSELoss, F.mse_loss),
    (_binary_cross_entropy, nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits),
    (_poisson, nn.PoissonNLLLoss, F.poisson_nll_loss),
    (_gaussian, nn.GaussianNLLLoss, F.gaussian_nll_loss),
)
