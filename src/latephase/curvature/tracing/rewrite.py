"""Rewriting traced graphs: the same numbers from fewer and cheaper operations."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import fx

from .pooling import mask_pooled_side

aten = torch.ops.aten

SAME = (aten.alias.default, aten.detach.default, aten.lift_fresh.default)
"""Operations that give back their argument."""

SHAPING = (aten.expand.default, aten.view.default, aten._unsafe_view.default, aten.reshape.default)
"""Operations that give back their argument where the shape stays."""


ZEROS = (aten._efficientzerotensor.default, aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)
"""Operations that make zeros: the tangents of what does not depend on the parameters."""

LINEAR = (
    *SHAPING, *SAME, aten.clone.default, aten.t.default, aten.transpose.int, aten.permute.default, aten.neg.default,
    aten.unsqueeze.default, aten.squeeze.dim, aten.slice.Tensor, aten.select.int, aten.constant_pad_nd.default,
    aten._to_copy.default, aten.mm.default, aten.bmm.default, aten.convolution.default,
)  # fmt: skip
"""Operations whose result is zero where the first argument is, structurally."""

SLOPES = (
    aten.gelu_backward.default, aten.silu_backward.default, aten.mish_backward.default, aten.softplus_backward.default,
    aten.log_sigmoid_backward.default, aten.hardswish_backward.default, aten.elu_backward.default,
)  # fmt: skip
"""Derivatives of activations that cost much more than the product with a slope computed once."""


def is_random(node: Any) -> bool:
    """Whether a node draws from torch's generators."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def dtypes_of(graph: fx.Graph) -> set[torch.dtype]:
    """The dtypes of the tensors in a graph."""
    return {layout(node)[1] for node in graph.nodes if layout(node)}


def mutates(node: Any) -> bool:
    """Whether a node writes into one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def writes_buffers(node: Any) -> bool:
    """Whether a node is batch norm's forward pass, which writes running statistics although its schema denies it."""
    name = str(node.target)
    return "batch_norm" in name and "backward" not in name


def simplify(graph: fx.Graph) -> None:
    """Rewrite a graph without mutations."""
    _prune(graph)
    _drop_identities(graph)
    _drop_zeros(graph)
    _hoist_slopes(graph)
    _merge_equal(graph)
    _prune(graph)
    mask_pooled_side(graph)
    _prune(graph)


def _prune(graph: fx.Graph) -> None:
    """Remove what nothing is computed from, except draws of random numbers: the later ones depend on the earlier."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not is_random(node):
            graph.erase_node(node)


def layout(node: Any) -> tuple[Any, ...]:
    """Shape, dtype, strides and device; empty for what is not one tensor."""
    return node.meta.get("layout", ()) if isinstance(node, fx.Node) else ()


def _drop_identities(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and _is_identity(node):
            node.replace_all_uses_with(node.args[0])


def _is_identity(node: Any) -> bool:
    source = node.args[0] if node.args else None
    if node.target in SAME:
        return True
    if node.target is aten.clone.default and any(writes_buffers(user) for user in node.users):
        return False
    own = layout(node)
    if not own or own != layout(source):
        return False
    return node.target in (*SHAPING, aten.clone.default, aten._to_copy.default)


def _merge_equal(graph: fx.Graph) -> None:
    """Compute once what is computed twice from the same arguments."""
    seen: dict[Hashable, Any] = {}
    for node in graph.nodes:
        if node.op != "call_function" or is_random(node) or writes_buffers(node) or "empty" in str(node.target):
            continue
        try:
            key = (node.target, _hashable(node.args), _hashable(node.kwargs))
            first = seen.setdefault(key, node)
        except TypeError:
            continue
        if first is not node:
            node.replace_all_uses_with(first)


def _hashable(value: Any) -> Hashable:
    if isinstance(value, (tuple, list)):
        return tuple(_hashable(part) for part in value)
    if isinstance(value, dict):
        return tuple((key, _hashable(part)) for key, part in value.items())
    return type(value), value


def _drop_zeros(graph: fx.Graph) -> None:
    """Leave structural zeros out of sums; without it a first layer's zero input tangent would be convolved and kept."""
    zeros: set[Any] = set()
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        biased = node.target is aten.convolution.default and node.args[2] is not None
        if node.target in ZEROS or (node.target in LINEAR and first in zeros and not biased):
            zeros.add(node)
        elif node.target is aten.add.Tensor and not node.kwargs:
            for zero, other in (node.args, node.args[::-1]):
                if zero in zeros and other not in zeros and _same_dtype(node, other):
                    node.replace_all_uses_with(_expanded(graph, other, node))
                    break


def _same_dtype(node: Any, other: Any) -> bool:
    return layout(node)[1:2] == layout(other)[1:2] != ()


def _expanded(graph: fx.Graph, node: Any, like: Any) -> Any:
    """A node in the shape of another to which it broadcasts."""
    shape = layout(like)[0]
    if layout(node)[0] == shape:
        return node
    with graph.inserting_before(like):
        return _call(graph, like, aten.expand.default, (node, list(shape)), {})


def _hoist_slopes(graph: fx.Graph) -> None:
    """f'(x) g as a product with f'(x), which every use of it shares and which does not depend on the vector."""
    for node in list(graph.nodes):
        if node.target not in SLOPES or layout(node.args[0]) != layout(node.args[1]):
            continue
        with graph.inserting_before(node):
            ones = _call(graph, node, aten.ones_like.default, (node.args[1],), {})
            slope = _call(graph, node, node.target, (ones, *node.args[1:]), node.kwargs)
            product = _call(graph, node, aten.mul.Tensor, (node.args[0], slope), {})
        node.replace_all_uses_with(product)


def _call(graph: fx.Graph, like: Any, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    node = graph.call_function(target, args, kwargs)
    node.meta.update(like.meta)
    return node


IN_PLACE = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.div.Tensor: aten.div_.Tensor,
    aten.addcmul.default: aten.addcmul_.default,
    aten.neg.default: aten.neg_.default,
    aten.mul.Scalar: aten.mul_.Scalar,
    aten.threshold_backward.default: aten.threshold_backward.grad_input,
    aten.sigmoid_backward.default: aten.sigmoid_backward.grad_input,
    aten.tanh_backward.default: aten.tanh_backward.grad_input,
}
"""Pointwise operations and their forms that write into the first argument."""

COMMUTES = (aten.add.Tensor, aten.mul.Tensor)

FRESH = (
    aten.mm.default, aten.bmm.default, aten.addmm.default, aten.convolution.default, *IN_PLACE, *IN_PLACE.values(),
)  # fmt: skip
"""Operations whose result is memory of its own."""


def reuse_memory(graph: fx.Graph) -> None:
    """Write results over arguments that nobody reads again. For one stage: what comes in from outside is kept."""
    for node in graph.nodes:
        if node.target not in IN_PLACE:
            continue
        arguments = list(node.args)
        if node.target in COMMUTES and not node.kwargs and not _is_spent(arguments[0], node):
            arguments[:2] = arguments[1::-1]
        if _is_spent(arguments[0], node):
            node.target, node.args = IN_PLACE[node.target], tuple(arguments)
            if node.target._overloadname == "grad_input":
                node.kwargs = {**node.kwargs, "grad_input": arguments[0]}


def _is_spent(argument: Any, node: Any) -> bool:
    """Whether a node may write over an argument: fresh memory of the result's form that only it reads."""
    return (
        isinstance(argument, fx.Node)
        and argument.target in FRESH
        and len(argument.users) == 1
        and layout(argument) == layout(node) != ()
    )
