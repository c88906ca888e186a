"""Layers written out in elementary operations, whose derivatives torch has right in every order.

torch 2.13's formulas for the third derivative of layer norm, and of batch and instance norm on the batch's statistics,
take mean and variance for constants, as do those for the derivatives of their tangents; and the fused kernel of
`weight_norm` has a wrong second derivative.
"""

from collections.abc import Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

ROUNDING = 1e-7
"""What `torch.embedding_renorm_` adds to a row's norm."""


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm over the last dimensions, its mean, and one over its standard deviation."""
    dims = list(range(-len(shape), 0))
    normed, mean, _, scale = _normalized(x, dims, eps)
    if weight is not None:
        normed = normed * weight
    if bias is not None:
        normed = normed + bias
    return normed.to(x.dtype), mean, scale


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean_so_far: Tensor | None,
    variance_so_far: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm [N, C, ...] on the batch's own statistics, its means [C], and one over its standard deviations [C].

    The running statistics, where given, are moved.
    """
    dims = [0, *range(2, x.dim())]
    normed, mean, variance, scale = _normalized(x, dims, eps)
    _move(mean_so_far, mean.flatten(), momentum)
    _move(variance_so_far, variance.flatten() * _unbiased(x, dims), momentum)
    return _by_channel(normed, weight, bias).to(x.dtype), mean.flatten(), scale.flatten()


def instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean_so_far: Tensor | None,
    variance_so_far: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Instance norm [N, C, ...] on each example's own statistics; running statistics, where given, are moved."""
    dims = list(range(2, x.dim()))
    normed, mean, variance, _ = _normalized(x, dims, eps)
    _move(mean_so_far, mean.flatten(1).mean(0), momentum)
    _move(variance_so_far, variance.flatten(1).mean(0) * _unbiased(x, dims), momentum)
    return _by_channel(normed, weight, bias).to(x.dtype)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """A weight of direction v and length g, by slices along a dimension (-1: as a whole)."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def renormed(rows: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """Rows [..., columns] longer than `max_norm` scaled to it, as `torch.embedding_renorm_` would in place."""
    outside = torch.linalg.vector_norm(rows.detach(), norm_type, dim=-1, keepdim=True) > max_norm
    length = torch.linalg.vector_norm(torch.where(outside, rows, 1.0), norm_type, dim=-1, keepdim=True)
    return rows * torch.where(outside, max_norm / (length + ROUNDING), 1.0)


def _normalized(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps), mean, variance, one over that root; in float32 at least, as torch's own."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    mean = wide.mean(dims, keepdim=True)
    centred = wide - mean
    variance = centred.square().mean(dims, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    return centred * scale, mean, variance, scale


def _by_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = [1, -1, *[1] * (x.dim() - 2)]
    if weight is not None:
        x = x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _unbiased(x: Tensor, dims: list[int]) -> float:
    """What makes a mean of squares over these dimensions the unbiased variance."""
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    return count / (count - 1) if count > 1 else float("nan")


def _move(so_far: Tensor | None, now: Tensor, momentum: float) -> None:
    if so_far is not None:
        with torch.no_grad(), forward_ad._set_fwd_grad_enabled(False):
            so_far.mul_(1 - momentum).add_(now.to(so_far.dtype), alpha=momentum)
