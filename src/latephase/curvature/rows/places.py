"""Where the examples of a chunk are in the tensors of a backward pass, operation by operation.

Known are the operations below; any other counts as one that mixes examples. Numbers could not tell it: a gate at zero
would pass.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

aten, prims = torch.ops.aten, torch.ops.prims


class CannotFollow(RuntimeError):
    """An operation may mix examples, or is not known."""


class Place(NamedTuple):
    """Examples in a tensor: index (o * examples + example) * inner + i of a dimension.

    Attributes:
        dim: the dimension.
        inner: how many of its entries belong to one example, side by side.
    """

    dim: int
    inner: int = 1


Rule = Callable[[int, Place, Sequence[Any], Any], Place | None]
"""(examples, their place in the argument that moves, arguments, result) -> their place in the result; None where
examples may mix. It is the first argument that moves, but for `index_put`."""

ENTRYWISE = frozenset([
    aten.softplus_backward.default, aten.elu_backward.default, aten.hardtanh_backward.default,
    aten.leaky_relu_backward.default, aten.log_sigmoid_backward.default, aten.hardswish_backward.default,
    aten.hardsigmoid_backward.default, aten.mish_backward.default, aten.softshrink_backward.default,
    aten.hardshrink_backward.default, aten.rrelu_with_noise_backward.default, aten.native_dropout_backward.default,
    aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten._to_copy.default, aten.detach.default, aten.alias.default,
    aten.lift_fresh.default, aten._prelu_kernel_backward.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device,
    aten.to.other, aten.contiguous.default, aten.clone.default, prims.mul.default, prims.add.default,
    prims.sub.default, prims.div.default, prims.neg.default, prims.where.default, prims.convert_element_type.default,
])  # fmt: skip
"""Operations on entries that torch does not tag as such."""

CONSTANT = frozenset([
    aten.new_zeros.default, aten.zeros_like.default, aten.ones_like.default, aten.new_ones.default,
    aten.empty_like.default, aten.new_empty.default, aten.new_full.default, aten.full_like.default,
    aten.new_empty_strided.default,
])  # fmt: skip
"""Operations that read no numbers of their argument."""


@functools.cache
def is_entrywise(func: Any) -> bool:
    """Whether an operation computes each entry from those of its arguments in the same place."""
    return func in ENTRYWISE or torch.Tag.pointwise in func.tags


def broadcast(examples: int, arguments: Sequence[tuple[Tensor, Place]], result: Tensor) -> Place | None:
    """Of an operation on entries: all examples in one place of the result."""
    found = {Place(result.dim() - x.dim() + place.dim, place.inner) for x, place in arguments}
    return found.pop() if len(found) == 1 else None


def joined(arguments: Sequence[tuple[Tensor, Place]], dim: int, stacked: bool) -> Place | None:
    """Of tensors put one behind the other along a dimension, or stacked along a new one."""
    found = {place for _, place in arguments}
    if len(found) != 1:
        return None
    (place,), dims = found, arguments[0][0].dim() + stacked
    dim %= dims
    if stacked:
        return Place(place.dim + (dim <= place.dim), place.inner)
    return None if dim == place.dim else place


def _reshaped(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place | None:
    """The order of entries stays: examples are where the same entries are."""
    if not result.numel():
        return None
    stride = math.prod(args[0].shape[place.dim + 1 :]) * place.inner
    after = 1
    for dim in range(result.dim() - 1, -1, -1):
        size = result.shape[dim]
        if after <= stride and stride * examples <= after * size:
            whole = stride % after == 0 and size % (examples * stride // after) == 0
            return Place(dim, stride // after) if whole else None
        after *= size
    return None


def _transposed(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place:
    dims = result.dim()
    one, other = (0, dims - 1) if len(args) < 3 else (int(dim) % dims for dim in args[1:3])
    return Place({one: other, other: one}.get(place.dim, place.dim), place.inner)


def _permuted(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place:
    return Place([dim % result.dim() for dim in args[1]].index(place.dim), place.inner)


def _expanded(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place:
    return Place(result.dim() - args[0].dim() + place.dim, place.inner)


def _unsqueezed(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place:
    return Place(place.dim + (args[1] % result.dim() <= place.dim), place.inner)


def _squeezed(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place:
    source = args[0]
    named = range(source.dim()) if len(args) < 2 else [args[1]] if isinstance(args[1], int) else args[1]
    gone = {dim % source.dim() for dim in named if source.shape[dim] == 1}
    return Place(place.dim - sum(dim < place.dim for dim in gone), place.inner)


def _selected(examples: int, place: Place, args: Sequence[Any], result: Any) -> Place | None:
    """Of taking one entry of another dimension, or all of them one by one."""
    dim = (args[1] if len(args) > 1 else 0) % args[0].dim()
    return None if dim == place.dim else Place(place.dim - (dim < place.dim), place.inner)


def _select_backward(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place:
    return Place(place.dim + (args[2] % result.dim() <= place.dim), place.inner)


def _diagonal_backward(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place | None:
    dims, taken = result.dim(), {dim % result.dim() for dim in args[3:5]}
    others = [dim for dim in range(dims) if dim not in taken]
    return Place(others[place.dim], place.inner) if place.dim < len(others) else None


def _along(position: int, default: int | None = None) -> Rule:
    """Of operations along one dimension, which is not that of the examples."""

    def rule(examples: int, place: Place, args: Sequence[Any], result: Any) -> Place | None:
        dim = args[position] if len(args) > position else default
        part = result if isinstance(result, Tensor) else result[0]
        same = part.shape[place.dim] == args[0].shape[place.dim]
        return place if same and dim is not None and dim % args[0].dim() != place.dim else None

    return rule


def _indexed(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place | None:
    """Of taking entries of one other dimension by a list of numbers, x[:, [2, 0]]."""
    taken = [dim for dim, index in enumerate(args[1]) if index is not None]
    plain = len(taken) == 1 and args[1][taken[0]].dim() == 1
    return place if plain and place.dim != taken[0] else None


def _put(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place | None:
    """Of putting such entries back, among zeros."""
    return None if bool(args[0].any()) else _indexed(examples, place, args, result)


def _along_several(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place | None:
    return None if place.dim in {dim % args[0].dim() for dim in args[1]} else place


def _reduced(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place | None:
    """Of a sum or mean over other dimensions."""
    dims = args[0].dim()
    gone = {dim % dims for dim in args[1]} if len(args) > 1 and args[1] else set(range(dims))
    if place.dim in gone:
        return None
    kept = len(args) > 2 and args[2]
    return place if kept else Place(place.dim - sum(dim < place.dim for dim in gone), place.inner)


def _padded(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place | None:
    return place if place.dim < args[0].dim() - len(args[1]) // 2 else None


def _of_images(examples: int, place: Place, args: Sequence[Any], result: Any) -> Place | None:
    """Of operations that see each entry of dimension 0, of images or heads, by itself."""
    return place if place.dim == 0 and args[0].dim() >= 4 else None


def _convolved(examples: int, place: Place, args: Sequence[Any], result: Tensor) -> Place | None:
    return place if place.dim == 0 and args[0].dim() == result.dim() else None


RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default, aten.reshape.default), _reshaped),
    **dict.fromkeys((aten.t.default, aten.transpose.int), _transposed),
    **dict.fromkeys((aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims), _squeezed),
    **dict.fromkeys((aten.select.int, aten.unbind.int), _selected),
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default), _along(2, 0)),
    **dict.fromkeys(
        (aten.slice.Tensor, aten.cumsum.default, aten.gather.default, aten.index_select.default), _along(1)
    ),
    **dict.fromkeys((aten._softmax_backward_data.default, aten._log_softmax_backward_data.default), _along(2)),
    aten.glu_backward.default: _along(2),
    **dict.fromkeys((aten.sum.dim_IntList, aten.mean.dim), _reduced),
    **dict.fromkeys(
        (
            aten.avg_pool2d_backward.default,
            aten._adaptive_avg_pool2d_backward.default,
            aten.max_pool2d_with_indices_backward.default,
            aten.upsample_nearest2d_backward.default,
            aten.upsample_bilinear2d_backward.default,
            aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
        ),
        _of_images,
    ),
    aten.permute.default: _permuted,
    aten.expand.default: _expanded,
    aten.unsqueeze.default: _unsqueezed,
    aten.index.Tensor: _indexed,
    aten.index_put.default: _put,
    aten.slice_backward.default: _along(2),
    aten.select_backward.default: _select_backward,
    aten.diagonal_backward.default: _diagonal_backward,
    aten.flip.default: _along_several,
    aten.constant_pad_nd.default: _padded,
    aten.convolution.default: _convolved,
}
