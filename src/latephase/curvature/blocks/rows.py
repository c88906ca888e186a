"""Whether the rows of a batch stay apart in a part of a traced graph, told by its operations alone.

Numbers cannot tell it: a gate at zero, a batch norm whose scale starts at zero, or a weak coupling would pass. Known
are the operations below; any other counts as one that mixes rows.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from ..tracing import IN_PLACE, SAME, SLOPES, aten, layout

POINTWISE = {
    *IN_PLACE, *SLOPES, *SAME, aten.clone.default, aten._to_copy.default, aten.neg.default, aten.mul.Scalar,
    aten.div.Scalar, aten.add.Scalar, aten.sub.Scalar, aten.where.self, aten.masked_fill.Scalar,
    aten.hardtanh_backward.default, aten.leaky_relu_backward.default, aten.zeros_like.default,
}  # fmt: skip
IMAGES = {
    aten.avg_pool2d.default, aten.avg_pool2d_backward.default, aten._adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d_backward.default, aten.max_pool2d_with_indices_backward.default,
}  # fmt: skip
"""Operations on [rows, channels, height, width] that see each row by itself."""

SEVERAL = {
    aten.convolution_backward.default, aten.native_layer_norm_backward.default,
    aten.native_batch_norm_backward.default, aten.native_group_norm_backward.default,
}  # fmt: skip
"""Operations with several results, of which the first is looked at."""

Places = Mapping[fx.Node, int]
"""Which dimension of each node's value the rows are."""


def rows_stay_apart(inside: Sequence[fx.Node], start: fx.Node, end: fx.Node) -> bool:
    """Whether row n of the end depends on row n of the start alone, rows being the first dimension of both.

    Args:
        inside: the nodes between them, both included, in order.
        start: where the map starts.
        end: where it ends.
    """
    rows, places = layout(start)[0][0], {start: 0}
    for node in inside:
        if node is start:
            continue
        place = _place(node, places)
        own = layout(node)
        if place is None or (own and own[0][place] != rows):
            return False
        places[node] = place
    return places.get(end) == 0


def _place(node: fx.Node, places: dict[fx.Node, int]) -> int | None:
    """The dimension of the rows in a node's value, or None where rows may mix."""
    moving = [argument for argument in node.all_input_nodes if argument in places]
    if node.target is operator.getitem:
        return places[moving[0]] if node.args[1] == 0 else None  # of several results the input's gradient
    if not layout(node) and node.target not in SEVERAL:
        return None
    if node.target in POINTWISE or node.target is aten.addcmul.default:
        return _broadcast(node, moving, places)
    rule: Callable[..., int | None] | None = RULES.get(node.target)
    if rule is not None:
        return rule(node, places)
    if node.target in IMAGES:
        only_first = moving == [node.args[0]] and places[moving[0]] == 0
        return 0 if only_first and len(layout(node)[0]) == 4 else None
    return None


def _broadcast(node: fx.Node, moving: Sequence[fx.Node], places: Places) -> int | None:
    """Of an operation on entries: all rows in one dimension of the result."""
    dims = len(layout(node)[0])
    found = {dims - len(layout(argument)[0]) + places[argument] for argument in moving}
    return found.pop() if len(found) == 1 else None


def _product(node: fx.Node, places: Places) -> int | None:
    """Of a matrix product, in a batch or not: rows are not what is summed over."""
    first, second = node.args[-2:] if node.target is aten.addmm.default else node.args[:2]
    batched = int(node.target is aten.bmm.default)
    bias = node.args[0] if node.target is aten.addmm.default else None
    if (first in places) == (second in places) or bias in places:
        return None
    place = places[first] if first in places else places[second]  # pyright: ignore[reportArgumentType]
    summed = batched + 1 if first in places else batched
    return None if place == summed else place


def _convolution(node: fx.Node, places: Places) -> int | None:
    """Of images: a convolution, or the gradient of one in its input."""
    image, *others = node.all_input_nodes
    return 0 if image in places and places[image] == 0 and not any(other in places for other in others) else None


def _reshaped(node: fx.Node, places: Places) -> int | None:
    """Rows in front stay in front where their number does."""
    source: Any = node.args[0]
    same = layout(node)[0][:1] == layout(source)[0][:1]
    return 0 if places[source] == 0 and same else None


def _permuted(node: fx.Node, places: Places) -> int | None:
    source: Any = node.args[0]
    dims, place = len(layout(source)[0]), places[source]
    if node.target is aten.t.default:
        return dims - 1 - place
    if node.target is aten.permute.default:
        order: Any = node.args[1]
        return [dim % dims for dim in order].index(place)
    one, other = (int(dim) % dims for dim in node.args[1:3])  # pyright: ignore[reportArgumentType]
    return {one: other, other: one}.get(place, place)


def _expanded(node: fx.Node, places: Places) -> int | None:
    source: Any = node.args[0]
    return len(layout(node)[0]) - len(layout(source)[0]) + places[source]


def _unsqueezed(node: fx.Node, places: Places) -> int | None:
    source: Any = node.args[0]
    dim = int(node.args[1]) % len(layout(node)[0])  # pyright: ignore[reportArgumentType]
    return places[source] + (dim <= places[source])


def _without_dimension(node: fx.Node, places: Places) -> int | None:
    """Of squeezing or selecting in another dimension than the rows'."""
    source: Any = node.args[0]
    dims, place = len(layout(source)[0]), places[source]
    dim = int(node.args[1]) % dims  # pyright: ignore[reportArgumentType]
    if len(layout(node)[0]) == dims:  # there was nothing to squeeze
        return place
    return None if dim == place else place - (dim < place)


def _cut_out(node: fx.Node, places: Places) -> int | None:
    """Of a slice in another dimension than the rows'."""
    source: Any = node.args[0]
    dim = int(node.args[1]) % len(layout(source)[0]) if len(node.args) > 1 else 0  # pyright: ignore[reportArgumentType]
    return None if dim == places[source] else places[source]


def _summed(node: fx.Node, places: Places) -> int | None:
    """Of a sum or mean over other dimensions than the rows'."""
    source: Any = node.args[0]
    dims, place = len(layout(source)[0]), places[source]
    over: Any = node.args[1] if len(node.args) > 1 else None
    if not over:
        return None
    gone = {dim % dims for dim in over}
    if place in gone:
        return None
    kept = bool(node.args[2]) if len(node.args) > 2 else False
    return place if kept else place - sum(dim < place for dim in gone)


def _softmax(node: fx.Node, places: Places) -> int | None:
    """Of the derivative of a softmax over another dimension than the rows'."""
    source: Any = node.args[0]
    dim = int(node.args[2]) % len(layout(node)[0])  # pyright: ignore[reportArgumentType]
    return places[source] if source in places and node.args[1] not in places and dim != places[source] else None


def _normalised(node: fx.Node, places: Places) -> int | None:
    """Of the backward pass of a normalisation within each row, in the input alone."""
    source: Any = node.args[0]
    if places.get(source) != 0 or any(other in places for other in node.all_input_nodes if other is not source):
        return None
    if node.target is aten.native_layer_norm_backward.default:
        shape: Any = node.args[2]
        return 0 if len(shape) < len(layout(source)[0]) else None
    if node.target is aten.native_batch_norm_backward.default:
        return None if node.args[7] else 0  # in training mode statistics are those of the batch
    return 0


def _gathered(node: fx.Node, places: Places) -> int | None:
    """Of taking entries along another dimension than the rows'."""
    source: Any = node.args[0]
    dim = int(node.args[1]) % len(layout(source)[0])  # pyright: ignore[reportArgumentType]
    return None if dim == places[source] else places[source]


def _padded(node: fx.Node, places: Places) -> int | None:
    source: Any = node.args[0]
    widths: Any = node.args[1]
    untouched = len(layout(source)[0]) - len(widths) // 2
    return places[source] if places[source] < untouched else None


RULES: dict[Any, Callable[[fx.Node, Places], int | None]] = {
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.addmm.default), _product),
    **dict.fromkeys((aten.convolution.default, aten.convolution_backward.default), _convolution),
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default, aten.reshape.default), _reshaped),
    **dict.fromkeys((aten.t.default, aten.transpose.int, aten.permute.default), _permuted),
    **dict.fromkeys((aten.squeeze.dim, aten.select.int), _without_dimension),
    **dict.fromkeys((aten.sum.dim_IntList, aten.mean.dim), _summed),
    **dict.fromkeys((aten._softmax_backward_data.default, aten._log_softmax_backward_data.default), _softmax),
    **dict.fromkeys(
        (
            aten.native_layer_norm_backward.default,
            aten.native_batch_norm_backward.default,
            aten.native_group_norm_backward.default,
        ),
        _normalised,
    ),
    aten.expand.default: _expanded,
    aten.unsqueeze.default: _unsqueezed,
    aten.slice.Tensor: _cut_out,
    aten.gather.default: _gathered,
    aten.constant_pad_nd.default: _padded,
}
