"""Products through a graph of autograd that is kept: the methods for what is not traced."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (  # pyright: ignore[reportMissingImports]
    get_unwrapped,
    is_functorch_wrapped_tensor,
)
from torch.func import functional_call
from torch.utils._pytree import tree_flatten

from ...objective import cuda_devices, differentiable_kernels, forked, is_exhaustion
from ..loss import loss_curvature
from .forward_pass import ForwardPass, Tensors
from .tangents import Push, double_backward, double_backward_gradient, linearized, refuse_ends, trace_pays


class Retained:
    """Products of one forward pass, whose graph stays.

    Attributes:
        forward: the forward pass.
        method: "linearize" or "double_backward" from the first product; before it, what was asked for.
    """

    def __init__(self, forward: ForwardPass, hessian: bool, method: str):
        self.forward, self.hessian, self.method = forward, hessian, method
        self._push: Push | None = None

    def product(self, v: Tensors) -> Tensors:
        """C v."""
        pushed = self._tangents(v)
        return pushed if self.hessian else self.forward.pull(self._loss_curvature(pushed))

    def quadratic_form(self, v: Tensors) -> Tensor:
        """The quadratic form v'Cv, scalar."""
        pushed = self._tangents(v)
        times = v if self.hessian else self._loss_curvature(pushed)
        wide = self.forward.space.dtype
        flat = [(x.reshape(-1).to(wide), y.reshape(-1).to(wide)) for x, y in zip(pushed, times, strict=True)]
        return torch.stack([torch.dot(x, y) for x, y in flat]).sum() if flat else self.forward.loss.new_zeros(())

    def storages(self) -> dict[int, int]:
        """Bytes of each storage that the graph keeps, by its address; that of a double backward adds about as much."""
        found: dict[int, int] = {}
        seen, waiting = set(), [self.forward.loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [following for following, _ in node.next_functions]
                for name in dir(node):
                    if name.startswith("_saved_"):
                        _collect(_saved(node, name), found)
        return found

    @cached_property
    def _loss_curvature(self):
        forward = self.forward
        return loss_curvature(forward.objective.program, forward.chunk.targets, forward.loss, forward.outputs)

    def _tangents(self, v: Tensors) -> Tensors:
        """Tangents of the outputs (of the gradient, for the Hessian) along v, by the first method that works."""
        forward = self.forward
        if not (forward.loss.requires_grad if self.hessian else forward.outputs):
            return [torch.zeros_like(leaf) for leaf in forward.leaves] if self.hessian else []
        if self._push is not None:
            return self._push(v)
        failures: list[Exception] = []
        for method in self._ladder():
            try:
                push = self._build(method)
                tangents = push(v)
            except (RuntimeError, NotImplementedError, AssertionError) as error:
                if self.method != "auto" or is_exhaustion(error):
                    raise
                failures.append(error)
            else:
                self._push, self.method = push, method
                return tangents
        raise RuntimeError(
            f"{_culprit(forward)} can be differentiated neither twice nor in forward mode: {failures[0]}. Replace it, "
            "or leave its parameters out of the optimizer"
        ) from failures[0]

    def _build(self, method: str) -> Push:
        if self.hessian:
            return double_backward_gradient(self.forward)
        return linearized(self.forward) if method == "linearize" else double_backward(self.forward)

    def _ladder(self) -> list[str]:
        """The methods in the order in which they are tried."""
        forward = self.forward
        if self.method != "auto":
            return [self.method]
        if self.hessian or forward.random:  # tracing would draw the random numbers anew
            return ["double_backward"]
        traces = trace_pays(forward.objective.model, forward.space, forward.chunk.extent)
        return ["linearize", "double_backward"] if traces else ["double_backward", "linearize"]


def _culprit(forward: ForwardPass) -> str:
    """The innermost module that cannot be differentiated twice by itself, in words; the model where none shows."""
    model = forward.objective.model
    calls: list[tuple[str, torch.nn.Module, tuple[Any, ...]]] = []
    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: calls.append((name, m, args)))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        forward.function(forward.named([leaf.detach() for leaf in forward.leaves]))
    finally:
        for hook in hooks:
            hook.remove()
    for name, module, arguments in calls:
        if not _differentiates_twice(module, arguments):
            return f"layer {name!r} ({type(module).__name__})"
    return f"A layer of {type(model).__name__}, or the loss,"


def _differentiates_twice(module: torch.nn.Module, arguments: tuple[Any, ...]) -> bool:
    leaves = [x.detach().requires_grad_() if _is_real(x) else x for x in arguments]
    # Copies, since a module by itself may move its buffers, scale its rows and draw random numbers.
    own = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in module.named_parameters()}
    swap = own | {name: buffer.clone() for name, buffer in module.named_buffers()}
    starts = [x for x in (*leaves, *own.values()) if _is_real(x) and x.requires_grad]
    with torch.enable_grad(), differentiable_kernels(module), forked(0, cuda_devices(module)):
        try:
            copies = [x.clone() if _is_real(x) else x for x in leaves]  # for a module that works in place
            outputs = [
                x
                for x in tree_flatten(functional_call(module, swap, tuple(copies)))[0]
                if _is_real(x) and x.requires_grad
            ]
            weights = [torch.ones_like(x, requires_grad=True) for x in outputs]
            slopes = torch.autograd.grad(outputs, starts, weights, create_graph=True, allow_unused=True)
            curved = [slope for slope in slopes if slope is not None and slope.requires_grad]
            refuse_ends(curved)
            if curved:
                torch.autograd.grad(curved, weights, [torch.ones_like(x) for x in curved], allow_unused=True)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            if is_exhaustion(error):
                raise
            return False
    return True


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _saved(node: Any, name: str) -> Any:
    try:
        return getattr(node, name)
    except RuntimeError as error:  # freed already
        if is_exhaustion(error):  # hooks that keep tensors elsewhere bring them back
            raise
        return None


def _collect(value: Any, found: dict[int, int]) -> None:
    if isinstance(value, Tensor):
        while is_functorch_wrapped_tensor(value):  # of torch.func's derivatives within the model
            value = get_unwrapped(value)
        if not value._is_zerotensor():  # known to be zero, and not stored
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    elif isinstance(value, (tuple, list)):
        for part in value:
            _collect(part, found)
