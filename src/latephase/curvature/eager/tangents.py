"""Tangents of the outputs, J v, by two methods that both linearise once and multiply many times."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.modules.conv import _ConvNd

from ...objective import quiet_forward_mode
from ...parameters import ParameterSpace
from .forward_pass import ForwardPass, Tensors

Push = Callable[[Tensors], Tensors]

TRACE_PAYS = 15_000_000
"""Parameters times rows of a convolutional network's chunk from which a trace pays on a CPU for one step alone.

Measured on a small convolutional network (38,282 parameters, one thread, torch 2.13), set-up and 13 products: with a
trace 0.28 s, 0.52 s and 1.06 s at 128, 384 and 896 rows, without it 0.17 s, 0.56 s and 1.35 s. Networks without
convolutions gain little from it within one step.
"""


def trace_pays(model: nn.Module, space: ParameterSpace, rows: int) -> bool:
    """Whether tracing is expected to pay although the trace may serve one step only."""
    large = space.device.type == "cpu" and space.size * rows >= TRACE_PAYS
    return large and any(isinstance(module, _ConvNd) for module in model.modules())


def linearized(forward: ForwardPass) -> Push:
    """V -> J v by `torch.func.linearize`: a forward-mode trace with everything that does not depend on v computed.

    Raises:
        RuntimeError: the trace would not give J v at every call: it draws random numbers, or writes into its own
            constants.
    """
    if forward.random:
        raise RuntimeError("torch.func.linearize would draw the random numbers (dropout) anew at every product")
    leaves = forward.named([leaf.detach() for leaf in forward.leaves])
    with quiet_forward_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")  # of its constant folding
        trace = torch.func.linearize(lambda point: forward.function(point)[1], leaves)[1]

    @torch.no_grad()
    def push(v: Tensors) -> Tensors:
        return trace(forward.named(v))

    # The trace of a layer that works in place (a GRU, x += y) adds to the folded constants at every call (torch 2.13),
    # so that it is right once only: two calls on the same vector then differ.
    probe = [torch.ones_like(leaf) for leaf in forward.leaves]
    tangents = push(probe)
    if not all(map(torch.equal, tangents, push(probe))):
        raise RuntimeError("torch.func.linearize cannot trace a layer that works in place")
    if not _adjoint(forward, probe, tangents):
        raise RuntimeError("torch.func.linearize differentiates what the backward pass takes as constant")
    return push


def _adjoint(forward: ForwardPass, v: Tensors, tangents: Tensors) -> bool:
    """Whether u'(J v) = v'(J'u): forward mode goes on through `torch.no_grad`, where reverse mode stops."""
    generator = torch.Generator().manual_seed(0)
    u = [torch.randn(x.shape, generator=generator).to(x) for x in tangents]
    pulled = forward.pull(u)
    one, other = (_inner(*pair) for pair in ((u, tangents), (v, pulled)))
    size = sum(float(x.double().norm() * y.double().norm()) for x, y in zip(u, tangents, strict=True))
    return abs(one - other) <= 3 * torch.finfo(tangents[0].dtype).eps ** 0.5 * size


def _inner(u: Tensors, w: Tensors) -> float:
    return sum(float((x.to_dense().double() * y.to_dense().double()).sum()) for x, y in zip(u, w, strict=True))


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
        slopes = grad(forward.loss, forward.leaves, create_graph=True, allow_unused=True)
        gradient = tuple(g.to_dense() if g is not None and g.is_sparse else g for g in slopes)
    return _backward_of(gradient, forward.leaves)


def _backward_of(pulled: tuple[Tensor | None, ...], inputs: Tensors) -> Push:
    kept = [(i, g) for i, g in enumerate(pulled) if g is not None and g.requires_grad]
    refuse_ends([g for _, g in kept])

    def push(v: Tensors) -> Tensors:
        if not kept:
            return [torch.zeros_like(x) for x in inputs]
        vectors = [v[i] for i, _ in kept]
        return grad([g for _, g in kept], inputs, vectors, retain_graph=True, materialize_grads=True)

    return push


def refuse_ends(tensors: Tensors) -> None:
    """Refuse a graph in which a function ends that can be differentiated once only.

    Torch puts a node there that raises when it is reached (`torch.autograd.function.once_differentiable`). It has no
    inputs, so that a backward pass to given inputs never reaches it, and what lies behind it would be missing.

    Raises:
        RuntimeError: there is such a node.
    """
    seen, waiting = set(), [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith("Error"):
            raise RuntimeError("a function of the model is marked as once_differentiable")
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
