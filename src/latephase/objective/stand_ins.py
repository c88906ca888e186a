"""The substitutes themselves, as (scope of the pass, the original, *its arguments) -> result; see `substitutes`.

They take arguments as torch's functions do, whose callers may name them.
"""

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from . import elementary

Place = tuple[types.ModuleType, str, Callable[..., Any]]
"""A module of torch, a name in it, and what stands there during a pass."""


class Again(BaseException):
    """The pass takes derivatives after a norm has run on torch's own kernel. No `except Exception` may swallow it."""


def _layer_norm(scope, original, input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    if not scope.writes_out() or not _fits(input, normalized_shape):
        return original(input, normalized_shape, weight, bias, eps, cudnn_enable)
    return elementary.layer_norm(_as_autocast(input), normalized_shape, weight, bias, eps)[0]


def _native_layer_norm(scope, original, input, normalized_shape, weight, bias, eps):
    if not scope.writes_out() or not _fits(input, normalized_shape):
        return original(input, normalized_shape, weight, bias, eps)
    return elementary.layer_norm(_as_autocast(input), normalized_shape, weight, bias, eps)


def _fits(input: Tensor, shape: Any) -> bool:
    """Whether the shape is that of the last dimensions; where not, torch's own error says so."""
    return len(shape) > 0 and tuple(input.shape[-len(shape) :]) == tuple(shape)


def _as_autocast(x: Tensor) -> Tensor:
    """Layer norm's input as autocast gives it to torch's own: in float32 on CUDA."""
    kind = x.device.type
    return x.float() if kind == "cuda" and x.is_floating_point() and torch.is_autocast_enabled(kind) else x


def _batch_norm(
    scope, original, input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled
):
    if not training or not scope.writes_out():
        return original(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)
    return elementary.batch_norm(input, weight, bias, running_mean, running_var, momentum, eps)[0]


def _native_batch_norm(scope, original, input, weight, bias, running_mean, running_var, training, momentum, eps):
    if not training or not scope.writes_out():
        return original(input, weight, bias, running_mean, running_var, training, momentum, eps)
    return elementary.batch_norm(input, weight, bias, running_mean, running_var, momentum, eps)


def _instance_norm(
    scope, original, input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled
):
    if not use_input_stats or not scope.writes_out():
        return original(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled)
    return elementary.instance_norm(input, weight, bias, running_mean, running_var, momentum, eps)


def _weight_norm(scope, original, v, g, dim=0):
    """The kernel's second derivative is wrong already, so that only a gradient may come from it."""
    if not scope.writes_out() and scope.first_order:
        return original(v, g, dim)
    return elementary.weight_norm(v, g, dim)


def _renorm(scope, original, weight, input, max_norm, norm_type):
    scope.renorm = max_norm, norm_type


def _embedding(scope, original, weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    renorm, scope.renorm = scope.renorm, None
    sparse = sparse and scope.first_order  # a sparse gradient has no second derivative
    rows = original(weight, indices, padding_idx, scale_grad_by_freq, sparse)
    return rows if renorm is None else elementary.renormed(rows, *renorm)


def _embedding_bag(scope, original, weight, *args, **kwargs):
    renorm, scope.renorm = scope.renorm, None
    return original(weight if renorm is None else elementary.renormed(weight, *renorm), *args, **kwargs)


def _engine(scope, original, *args, **kwargs):
    scope.differentiated = True
    if not scope.elementary and (scope.native or scope.first_order):
        raise Again
    scope.elementary = True
    return original(*args, **kwargs)


def _checkpoint(scope, original, *args, **kwargs):
    """What `torch.utils.checkpoint.checkpoint` runs before and after the function; nothing, for a plain call.

    The recomputation, outside the pass, must find what the pass has found: no substitutes, and no other parameters.
    """
    renormed = (getattr(module, "max_norm", None) is not None for module in scope.model.modules())
    keeps = scope.first_order and not scope.elementary and not any(renormed)
    return original(*args, **kwargs) if keeps else _nothing()


def _nothing() -> Iterator[None]:
    yield


def _reentrant_checkpoint(scope, original, function, preserve_rng_state, *args):
    """Called plainly in any case: `torch.autograd.grad` does not serve that kind."""
    return function(*args)


STAND_INS: list[Place] = [
    (torch, "layer_norm", _layer_norm),
    (torch, "native_layer_norm", _native_layer_norm),
    (torch, "batch_norm", _batch_norm),
    (torch, "native_batch_norm", _native_batch_norm),
    (torch, "instance_norm", _instance_norm),
    (torch, "_weight_norm", _weight_norm),
    (sys.modules["torch.nn.utils.weight_norm"], "_weight_norm", _weight_norm),
    (torch.nn.functional, "_no_grad_embedding_renorm_", _renorm),
    (torch, "embedding", _embedding),
    (torch, "embedding_bag", _embedding_bag),
    (torch.autograd, "_engine_run_backward", _engine),
    (torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", _checkpoint),
]
"""Where the functions are looked up when they are called, also by code that has bound their callers' names early."""
METHODS: list[tuple[types.ModuleType, str, Callable[..., Any], str]] = [
    (torch.utils.checkpoint, "CheckpointFunction", _reentrant_checkpoint, "apply")
]
"""The same for classes of which only one method is called."""
