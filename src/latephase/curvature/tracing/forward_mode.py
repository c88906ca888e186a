"""Forward mode made to see what reverse mode sees."""

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .operations import CannotTrace

FORWARD_MODE = "the forward pass takes derivatives in forward mode itself"
"""Why a pass is not recorded."""


class TangentsLikeGradients(TorchFunctionMode):
    """Within, tangents stop where gradients do, so that J v and J'u are of one Jacobian.

    torch's forward mode goes on through `torch.no_grad`, and through the row of an embedding that `padding_idx` names,
    which gets no gradient.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            with forward_ad._set_fwd_grad_enabled(False):
                return func(*args, **kwargs)
        if func is F.embedding:
            return _embedding(*args, **kwargs)
        return func(*args, **kwargs)


class NoForwardMode(TorchFunctionMode):
    """Refuses to record a pass that uses forward mode: the backward pass through its graph may end the process.

    In torch 2.13, of a tangent's derivative in reverse mode, as Hessians by `torch.func` have it.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if forward_ad._current_level >= 0:
            raise CannotTrace(FORWARD_MODE)
        return func(*args, **(kwargs or {}))


def _embedding(
    input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False
) -> Tensor:
    """`torch.nn.functional.embedding` with a dense gradient, and no tangent where the row gets no gradient."""
    if scale_grad_by_freq:
        raise CannotTrace("an embedding scales gradients by frequency: they are not those of its output")
    result = F.embedding(input, weight, padding_idx, max_norm, norm_type)
    primal, tangent = forward_ad.unpack_dual(result)
    if tangent is None or padding_idx is None:
        return result
    padding = padding_idx % weight.shape[0]
    return forward_ad.make_dual(primal, tangent * (input != padding).unsqueeze(-1))
