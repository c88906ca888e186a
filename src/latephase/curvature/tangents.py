"""Tangents of the outputs, J v, by two methods that both linearise once and multiply many times."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import grad

from .forward_pass import ForwardPass, Tensors

Push = Callable[[Tensors], Tensors]


def linearized(forward: ForwardPass) -> Push:
    """V -> J v by `torch.func.linearize`: a forward-mode trace with everything that does not depend on v computed.

    Raises:
        RuntimeError: the trace would not give J v at every call: it draws random numbers, or writes into its own
            constants.
    """
    if forward.random:
        raise RuntimeError("torch.func.linearize would draw the random numbers (dropout) anew at every product")
    leaves = forward.named([leaf.detach() for leaf in forward.leaves])
    with warnings.catch_warnings():
        # Of torch's own workings: its constant folding, and the import of its forward-mode decompositions.
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=DeprecationWarning)
        trace = torch.func.linearize(lambda point: forward.function(point)[1], leaves)[1]

    @torch.no_grad()
    def push(v: Tensors) -> Tensors:
        return trace(forward.named(v))

    # The trace of a layer that works in place (a GRU, x += y) adds to the folded constants at every call (torch 2.13),
    # so that it is right once only: two calls on the same vector then differ.
    probe = [torch.ones_like(leaf) for leaf in forward.leaves]
    if not all(map(torch.equal, push(probe), push(probe))):
        raise RuntimeError("torch.func.linearize cannot trace a layer that works in place")
    return push


def double_backward(forward: ForwardPass) -> Push:
    """V -> J v by the double backward trick (Townsend 2017).

    The pull-back u -> J'u is linear in u, so its vector-Jacobian product with v is J v. Its graph is built once.
    """
    u = [torch.zeros_like(output, requires_grad=True) for output in forward.outputs]
    with torch.enable_grad():
        pulled = grad(forward.outputs, forward.leaves, u, create_graph=True, allow_unused=True)
    return _backward_of(pulled, u)


def double_backward_gradient(forward: ForwardPass) -> Push:
    """V -> H v, H the Hessian of the loss, by backward through the gradient, whose graph is built once."""
    with torch.enable_grad():
        gradient = grad(forward.loss, forward.leaves, create_graph=True, allow_unused=True)
    return _backward_of(gradient, forward.leaves)


def _backward_of(pulled: tuple[Tensor | None, ...], inputs: Tensors) -> Push:
    kept = [(i, g) for i, g in enumerate(pulled) if g is not None and g.requires_grad]

    def push(v: Tensors) -> Tensors:
        if not kept:
            return [torch.zeros_like(x) for x in inputs]
        vectors = [v[i] for i, _ in kept]
        return grad([g for _, g in kept], inputs, vectors, retain_graph=True, materialize_grads=True)

    return push
