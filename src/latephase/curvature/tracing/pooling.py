"""Rewriting traced graphs where a ReLU is followed by max pooling: its mask goes over to the pooled side.

A pooled value is positive exactly where the value that it was taken from is, so the ReLU's mask can be applied to a
fraction of the entries: to a tangent after pooling, to a gradient before it is spread out.
"""

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def mask_pooled_side(graph: fx.Graph) -> None:
    """Move masks of ReLUs to the other side of max pooling where nothing else needs them."""
    for node in list(graph.nodes):
        if node.target is aten.threshold_backward.default and node.args[2] == 0:
            _of_gradient(graph, node)
        elif node.target is aten.gather.default:
            _of_tangent(graph, node)


def _of_gradient(graph: fx.Graph, mask: Any) -> None:
    """mask(crop(spread(g))) -> crop(spread(mask(g)))."""
    cropped, relu = mask.args[:2]
    spread, padding = _without_padding(cropped)
    if spread.target is not aten.max_pool2d_with_indices_backward.default or len(spread.users) > 1:
        return
    pooled = _pooled(spread.args[-1], relu, [-amount for amount in padding])
    if pooled is None or len(cropped.users) > 1:
        return
    with graph.inserting_before(spread):
        first = graph.call_function(mask.target, (spread.args[0], pooled, 0))
    first.meta.update(pooled.meta)
    spread.args = (first, *spread.args[1:])
    mask.replace_all_uses_with(cropped)


def _of_tangent(graph: fx.Graph, gather: Any) -> None:
    """gather(flat(pad(mask(t))), i) -> mask(gather(flat(t), j)), j being i without the padding."""
    flat, _, indices = gather.args
    if flat.target is not aten.view.default or getattr(indices, "target", None) is not aten.view.default:
        return
    mask, padding = _without_padding(flat.args[0])
    if mask.target is not aten.threshold_backward.default or mask.args[2] != 0 or len(padding) > 4:
        return
    pooled = _pooled(indices.args[0], mask.args[1], padding)
    shaped = next(iter(gather.users))
    alone = all(len(node.users) == 1 for node in (gather, flat, flat.args[0], mask))
    if pooled is None or not alone or shaped.meta.get("layout") != pooled.meta.get("layout"):
        return
    *batch, height, width = mask.meta["layout"][0]
    if flat.meta["layout"][0][-1] >= 2**23:
        return
    with graph.inserting_before(gather):
        inner = _unpadded(graph, indices, [*padding, *[0] * (4 - len(padding))], height, width) if padding else indices
        shape = [*batch, height * width]
        flat = graph.call_function(aten.view.default, (mask.args[0], shape))
    _, dtype, _, device = mask.meta["layout"]
    like = torch.empty(shape, device="meta")
    flat.meta["layout"] = tuple(like.shape), dtype, like.stride(), device
    gather.args = (flat, gather.args[1], inner)
    with graph.inserting_after(shaped):
        masked = graph.call_function(mask.target, (shaped, pooled, 0))
    masked.meta.update(pooled.meta)
    shaped.replace_all_uses_with(masked, delete_user_cb=lambda node: node is not masked)


def _unpadded(graph: fx.Graph, indices: Any, padding: list[int], height: int, width: int) -> Any:
    """Flat positions in a padded image as those in the image; one in the padding, whose mask is zero, anywhere."""
    left, right, top, _ = padding

    call, whole = graph.call_function, width + left + right
    # In float32, which is exact here and many times faster than the division of integers.
    position = call(aten._to_copy.default, (indices,), {"dtype": torch.float32})
    row = call(aten.floor.default, (call(aten.div.Scalar, (position, whole)),))
    column = call(aten.sub.Tensor, (position, call(aten.mul.Scalar, (row, whole))))
    row = call(aten.clamp.default, (call(aten.sub.Scalar, (row, top)), 0, height - 1))
    column = call(aten.clamp.default, (call(aten.sub.Scalar, (column, left)), 0, width - 1))
    inner = call(aten.add.Tensor, (call(aten.mul.Scalar, (row, width)), column))
    return call(aten._to_copy.default, (inner,), {"dtype": torch.int64})


def _without_padding(node: Any) -> tuple[Any, list[int]]:
    if node.target is aten.constant_pad_nd.default and not any(node.args[2:]):
        return node.args[0], list(node.args[1])
    return node, []


def _pooled(indices: Any, relu: Any, padding: list[int]) -> Any:
    """The pooled values to which indices belong, if what was pooled is a ReLU's result, padded so with zeros."""
    if getattr(indices, "target", None) is not operator.getitem or indices.args[1] != 1:
        return None
    pool = indices.args[0]
    if pool.target is not aten.max_pool2d_with_indices.default or _without_padding(pool.args[0]) != (relu, padding):
        return None
    return next((user for user in pool.users if user.target is operator.getitem and user.args[1] == 0), None)
