"""Operations that sum over examples: the gradients of what a layer has one of for all examples."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .places import RULES, CannotFollow, Place
from .terms import Terms, examples_first, mark, of_product, of_sum, tag_of

aten = torch.ops.aten

Sums = Callable[[int, Any, Any, Any], Any]
"""(examples, operation, arguments, those by name) -> what it gives, marked; sums are never computed."""


class _Patches:
    """Patches of images that a convolution's kernel sees, [examples, places, entries of the kernel]."""

    def __init__(self, images: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any):
        self.images, self.kernel, self.settings = images, tuple(kernel), (dilation, padding, stride)

    def __eq__(self, other: object) -> bool:
        """Whether these are the same patches of the same memory."""
        if not isinstance(other, _Patches) or (self.kernel, self.settings) != (other.kernel, other.settings):
            return False
        return (self.images.data_ptr(), self.images.shape) == (other.images.data_ptr(), other.images.shape)

    def __getitem__(self, examples: slice, /) -> Tensor:
        return F.unfold(self.images[examples], self.kernel, *self.settings).mT


def of_convolution(slopes: Tensor, images: Tensor, weight: Tensor, args: Sequence[Any]) -> Terms | None:
    """Of the gradient of a convolution's weight, from the arguments of aten's convolution_backward."""
    stride, padding, dilation, transposed, _, groups = args[4:10]
    if transposed or groups != 1 or weight.dim() not in (3, 4):
        return None
    if weight.dim() == 3:  # of sequences, as of images of height 1
        slopes, images, weight = (x.unsqueeze(2) for x in (slopes, images, weight))
        stride, padding, dilation = ((first, *each) for first, each in ((1, stride), (0, padding), (1, dilation)))
    patches = _Patches(images, weight.shape[2:], tuple(stride), tuple(padding), tuple(dilation))
    entries, places = weight[0].numel(), slopes[0, 0].numel()
    return Terms([(slopes.flatten(2), patches)], sizes=(weight.shape[0], entries), room=entries * places)


def of_embedding(slopes: Tensor, indices: Tensor, rows: int, padding: int, place: Place, examples: int) -> Terms | None:
    """Of the gradient of an embedding."""
    if place.dim >= indices.dim():
        return None
    first = examples_first(slopes, place, examples).flatten(1, -2)
    which = examples_first(indices, place, examples).flatten(1)
    first = first * (which != padding).unsqueeze(2)
    found = first.new_zeros(examples, rows, first.shape[2])
    return Terms(values=[found.scatter_add_(1, which.unsqueeze(2).expand_as(first), first)])


def _product(examples: int, func: Any, args: Any, kwargs: Any) -> Any:
    """Of a product of matrices: either it sums over examples, or they are in its rows, columns or batch."""
    added = func in (aten.addmm.default, aten.baddbmm.default)
    first, second = args[1:3] if added else args[:2]
    one, other = tag_of(first), tag_of(second)
    place = one or other
    if not isinstance(place, Place) or (one and other):
        raise CannotFollow(f"{func} is not linear in the cotangents")
    if not added and (second if one else first)._is_zerotensor():
        return func(*args, **kwargs)
    batched = first.dim() - 2
    if place.dim == batched + (one is not None):
        if added:
            raise CannotFollow(f"{func} adds a sum over examples to something")
        of_first = Place(batched + 1, place.inner)
        result = first.new_empty(*first.shape[:-1], second.shape[-1])
        mark(result, of_product(first, second, of_first, examples))
        return result
    result = func(*args, **kwargs)
    if added and tag_of(args[0]) not in (None, place):
        raise CannotFollow(f"{func} joins examples of different places")
    if added and tag_of(args[0]) is not None and args[0].shape != result.shape:
        raise CannotFollow(f"{func} joins examples of different places")
    mark(result, place)
    return result


def _sum(examples: int, func: Any, args: Any, kwargs: Any) -> Any:
    place: Any = tag_of(args[0])
    dims = args[0].dim()
    gone = sorted(dim % dims for dim in args[1]) if len(args) > 1 and args[1] else list(range(dims))
    result = func(*args, **kwargs)
    if place.dim in gone:
        mark(result, of_sum(args[0], place, gone, examples))
    else:
        moved: Any = RULES[aten.sum.dim_IntList](examples, place, args, result)
        mark(result, moved)
    return result


def _convolution_backward(examples: int, func: Any, args: Any, kwargs: Any) -> Any:
    slopes, images, weight = args[:3]
    mask = args[10]
    if (
        tag_of(images) is not None
        or tag_of(weight) is not None
        or tag_of(slopes) != Place(0)
        or len(slopes) != examples
    ):
        raise CannotFollow(f"{func} may mix examples")
    of_weight = of_convolution(slopes, images, weight, args) if mask[1] else None
    if mask[1] and of_weight is None:
        raise CannotFollow("a transposed or grouped convolution, or one in three dimensions")
    image = func(*args[:10], [mask[0], False, False], **kwargs)[0]
    if image is not None:
        mark(image, Place(0))
    gradients = [torch.empty_like(weight) if mask[1] else None, None]
    if gradients[0] is not None and of_weight is not None:
        mark(gradients[0], of_weight)
    if mask[2]:
        gradients[1] = slopes.new_empty(slopes.shape[1])
        dims = [0, *range(2, slopes.dim())]
        mark(gradients[1], of_sum(slopes, Place(0), dims, examples))
    return image, *gradients


def _embedding(examples: int, func: Any, args: Any, kwargs: Any) -> Any:
    slopes, indices, rows, padding, by_frequency = args
    place = tag_of(slopes)
    terms = None
    if isinstance(place, Place) and not by_frequency:
        terms = of_embedding(slopes, indices, rows, padding, place, examples)
    if terms is None:
        raise CannotFollow(f"{func} may mix examples")
    result = slopes.new_empty(rows, slopes.shape[-1])
    mark(result, terms)
    return result


def _normalisation(examples: int, func: Any, args: Any, kwargs: Any) -> Any:
    """Of the backward pass of a normalisation within each example, or by constants."""
    slopes, images, mask = args[0], args[1], args[-1]
    place = tag_of(slopes)
    if not isinstance(place, Place) or any(tag_of(x) is not None for x in args[1:] if isinstance(x, Tensor)):
        raise CannotFollow(f"{func} may mix examples")
    normal, dims = NORMS[func](images, args, place)
    input = func(*args[:-1], [mask[0], False, False], **kwargs)[0]
    if input is not None:
        mark(input, place)
    shape = [size for dim, size in enumerate(images.shape) if dim not in dims]
    gradients: list[Tensor | None] = [None, None]
    for position, factor in enumerate((normal, None)):
        if mask[1 + position]:
            gradients[position] = own = slopes.new_empty(shape)
            mark(own, of_sum(slopes if factor is None else slopes * factor, place, dims, examples))
    return input, *gradients


def _by_layer(images: Tensor, args: Any, place: Place) -> tuple[Tensor, list[int]]:
    dims = list(range(images.dim() - len(args[2])))
    if place.dim not in dims:
        raise CannotFollow("a layer norm over the examples")
    return (images - args[3]) * args[4], dims


def _by_group(images: Tensor, args: Any, place: Place) -> tuple[Tensor, list[int]]:
    if place.dim:
        raise CannotFollow("a group norm over the examples")
    rows, groups = args[5], args[8]
    normal = (images.reshape(rows, groups, -1) - args[2].view(rows, groups, 1)) * args[3].view(rows, groups, 1)
    return normal.view(images.shape), [0, *range(2, images.dim())]


def _by_constants(images: Tensor, args: Any, place: Place) -> tuple[Tensor, list[int]]:
    if args[7] or place.dim == 1:
        raise CannotFollow("a batch norm by the batch's statistics")
    shape = (-1, *[1] * (images.dim() - 2))
    deviation = (args[4] + args[8]).sqrt()
    return (images - args[3].view(shape)) / deviation.view(shape), [0, *range(2, images.dim())]


NORMS: dict[Any, Callable[[Tensor, Any, Place], tuple[Tensor, list[int]]]] = {
    aten.native_layer_norm_backward.default: _by_layer,
    aten.native_group_norm_backward.default: _by_group,
    aten.native_batch_norm_backward.default: _by_constants,
}
"""(input, arguments, place of the examples) -> the normalised input, and the dimensions that a parameter is not of."""


SUMS: dict[Any, Sums] = {
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default), _product),
    **dict.fromkeys((aten.sum.dim_IntList, aten.sum.default), _sum),
    aten.convolution_backward.default: _convolution_backward,
    aten.embedding_dense_backward.default: _embedding,
    **dict.fromkeys(NORMS, _normalisation),
}
