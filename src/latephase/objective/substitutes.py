"""What stands in for operations of torch while a forward pass runs that will be differentiated several times.

- Norms whose higher derivatives torch has wrong are written out in elementary operations (`elementary`): wherever a
  forward pass takes derivatives itself, as a physics-informed loss does. Elsewhere their first two derivatives are all
  that is needed, those are right, and torch's own kernels are faster. That a pass takes derivatives shows when it first
  does so; it then begins anew, and later passes of its kind start with what they need.
- Gradient checkpoints are plain calls: the recomputation, in the backward pass, would find other kernels, and the
  model's own parameters in place of those of the pass.
- `max_norm` of an embedding scales the rows that are looked up instead of writing the weight.

The substitutes are put where torch and its users look functions up by name, since a `TorchFunctionMode` takes a third
more time for small models. They are there while a pass runs, and only the thread of the pass sees them.
"""

import contextlib
import sys
import threading
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._C._functorch import (  # pyright: ignore[reportMissingImports]
    TransformType,
    get_interpreter_stack,
)

from . import elementary
from .exclusive import exclusive
from .kernels import differentiable_kernels

T = TypeVar("T")
Undo = Callable[[], None]


class _Again(BaseException):
    """The pass takes derivatives after a norm has run on torch's own kernel. No `except Exception` may swallow it."""


class _Scope:
    """A pass that is under way.

    Attributes:
        model: whose it is.
        thread: that runs it.
        elementary: whether norms are written out.
        first_order: whether nothing but a gradient will be asked for.
        used: whether an operation was met that could be written out.
        native: whether one ran on torch's own kernel.
        differentiated: whether the pass took derivatives.
        renorm: `max_norm` and its `norm_type` for the embedding that comes next.
    """

    def __init__(self, model: nn.Module, elementary: bool, first_order: bool):
        self.model, self.thread = model, threading.get_ident()
        self.elementary, self.first_order = elementary, first_order
        self.used = self.native = self.differentiated = False
        self.renorm: tuple[float, float] | None = None
        self._levels = derivative_levels()

    def writes_out(self) -> bool:
        """Whether a norm that is met now is to be written out."""
        self.used = True
        out = self.elementary or derivative_levels() != self._levels
        self.native = self.native or not out
        return out


_current: _Scope | None = None
_known: "weakref.WeakKeyDictionary[nn.Module, dict[Hashable, bool]]" = weakref.WeakKeyDictionary()
"""By kind of pass: True where norms are written out, False where there are none; missing where neither is known."""


def derivative_levels() -> tuple[int, int]:
    """How many transforms of `torch.func` that differentiate, and levels of dual numbers, enclose what runs now."""
    stack = get_interpreter_stack() or ()
    kinds = (TransformType.Grad, TransformType.Jvp)
    return sum(level.key() in kinds for level in stack), forward_ad._current_level


def kept_kinds(model: nn.Module) -> dict[Hashable, bool]:
    """What is known of the kinds of a model's passes, to be put back."""
    return dict(_known.get(model, {}))


def put_back_kinds(model: nn.Module, kept: dict[Hashable, bool]) -> None:
    """Know of a model's passes what was known before."""
    _known[model] = kept


def substituted(
    model: nn.Module,
    kind: Hashable,
    call: Callable[[], T],
    keep: Callable[[], Undo],
    first_order: bool = False,
) -> T:
    """Run a forward pass with the substitutes that it needs.

    Args:
        model: whose pass it is.
        kind: passes of one kind take derivatives alike.
        call: the pass.
        keep: () -> what undoes the side effects of a pass that is broken off.
        first_order: nothing but a gradient will be asked for, so that torch's own kernels and checkpoints serve unless
            the pass takes derivatives itself.
    """
    with exclusive():
        known, key = _known.setdefault(model, {}), (first_order, kind)
        state = known.get(key)
        undo = None if state is not None else keep()
        # Where there is no norm, one that comes up after all is written out: nothing was kept to begin anew.
        scope = _Scope(model, state is not None, first_order)
        try:
            with _kernels(scope, state), _Installed(scope):
                result = call()
        except _Again:
            assert undo is not None
            undo()
            scope, state = _Scope(model, True, first_order), True
            with _kernels(scope, state), _Installed(scope):
                result = call()
            known[key] = True
            return result
        if state is None and scope.differentiated and scope.used:
            known[key] = True
        elif state is None and not scope.used:
            known[key] = False
        elif state is False and scope.used:
            known.pop(key)
        return result


def _kernels(scope: _Scope, state: bool | None) -> contextlib.AbstractContextManager[None]:
    """Kernels that can be differentiated, also for a gradient alone where the pass takes derivatives."""
    return differentiable_kernels(scope.model) if scope.first_order and state else contextlib.nullcontext()


class _Installed:
    """Within, the substitutes serve a pass; afterwards what stood in their places is there again."""

    def __init__(self, scope: _Scope):
        self._scope, self._before = scope, _current

    def __enter__(self) -> None:
        global _current
        _current = self._scope
        if self._before is None:
            for patch in _PATCHES:
                patch.original = patch.names.get(patch.name)
                if patch.original is not None:
                    patch.names[patch.name] = patch.stand_in

    def __exit__(self, *_: object) -> None:
        global _current
        _current = self._before
        if self._before is None:
            for patch in _PATCHES:
                if patch.original is not None:
                    patch.names[patch.name] = patch.original


class _Patch:
    """A name in a module of torch, and what stands there during a pass; nothing where there is no such name.

    Args:
        module: where.
        name: which.
        substitute: (scope, original, *arguments) -> result.
        method: the name is that of a class, of which only this method is called.
    """

    def __init__(self, module: types.ModuleType, name: str, substitute: Callable[..., Any], method: str = ""):
        self.names, self.name = vars(module), name
        self.original: Any = self.names.get(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            original = getattr(self.original, method) if method else self.original
            scope = _current
            if scope is None or scope.thread != threading.get_ident() or torch.compiler.is_compiling():
                return original(*args, **kwargs)
            return substitute(scope, original, *args, **kwargs)

        self.stand_in: Any = types.SimpleNamespace(**{method: call}) if method else call


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
        raise _Again
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


_PATCHES = [
    _Patch(torch, "layer_norm", _layer_norm),
    _Patch(torch, "native_layer_norm", _native_layer_norm),
    _Patch(torch, "batch_norm", _batch_norm),
    _Patch(torch, "native_batch_norm", _native_batch_norm),
    _Patch(torch, "instance_norm", _instance_norm),
    _Patch(torch, "_weight_norm", _weight_norm),
    _Patch(sys.modules["torch.nn.utils.weight_norm"], "_weight_norm", _weight_norm),
    _Patch(torch.nn.functional, "_no_grad_embedding_renorm_", _renorm),
    _Patch(torch, "embedding", _embedding),
    _Patch(torch, "embedding_bag", _embedding_bag),
    _Patch(torch.autograd, "_engine_run_backward", _engine),
    _Patch(torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", _checkpoint),
    _Patch(torch.utils.checkpoint, "CheckpointFunction", _reentrant_checkpoint, method="apply"),
]
"""Where the functions are looked up when they are called, also by code that has bound their callers' names early."""
