"""Forward mode made to see what reverse mode sees."""

import torch
import torch.autograd.forward_ad as forward_ad
from torch.overrides import TorchFunctionMode

from .recorder import CannotTrace


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
        result = func(*args, **kwargs)
        return _masked(result, *args[1:], **kwargs) if func is torch.embedding else result


def _masked(result, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    if scale_grad_by_freq:
        raise CannotTrace("an embedding scales gradients by frequency: they are not those of its output")
    primal, tangent = forward_ad.unpack_dual(result)
    if tangent is None or padding_idx < 0:
        return result
    return forward_ad.make_dual(primal, tangent * (indices != padding_idx).unsqueeze(-1))
