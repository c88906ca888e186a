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
import threading
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch._C._functorch import (  # pyright: ignore[reportMissingImports]
    TransformType,
    get_interpreter_stack,
)

from .exclusive import exclusive
from .kernels import differentiable_kernels
from .stand_ins import METHODS, STAND_INS, Again

T = TypeVar("T")
Undo = Callable[[], None]


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
        except Again:
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


_PATCHES = [*(_Patch(*place) for place in STAND_INS), *(_Patch(*place) for place in METHODS)]
