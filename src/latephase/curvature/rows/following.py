"""Rows of many examples by one backward pass of their chunk.

A parameter's gradient is a sum over examples: a matrix product that sums over them, a sum along their dimension. The
pass runs with every tensor that comes from the cotangents knowing where its examples are (`places`), and where such a
sum is made, its terms are kept instead (`terms`). The idea is that of Goodfellow (2015, "Efficient Per-Example Gradient
Computations"), for whatever the pass consists of.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from .places import CONSTANT, RULES, CannotFollow, Place, broadcast, is_entrywise, joined
from .terms import ByExample, Terms, of_convolution, of_embedding, of_product, of_sum

aten = torch.ops.aten

Tag = Place | Terms
"""What is known of a tensor that depends on the cotangents."""

HIDDEN = ("tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage")
"""Functions of a tensor that hand out its values or its memory."""
KEEP_ORDER = (aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.detach.default)
"""Operations on a sum whose terms stay what they are."""


def follow(outputs: Sequence[Tensor], leaves: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Terms | None]:
    """The terms of J'u, one for each example, for each leaf; None where it does not depend on a leaf.

    Args:
        outputs: tensors with a graph, dimension 0 counting at least two examples.
        leaves: of the graph.
        cotangents: u, in the outputs' shapes.

    Raises:
        CannotFollow: an operation of the backward pass may mix examples, or is not known.
    """
    examples = len(outputs[0])
    own = [u.detach().clone() for u in cotangents]
    for u in own:
        _set(u, Place(0))
    mode = _Following(examples)
    with _NothingHidden(), mode:
        found = torch.autograd.grad(outputs, leaves, own, retain_graph=True, allow_unused=True)
    return [_terms_of(each) for each in found]


def _terms_of(gradient: Tensor | None) -> Terms | None:
    tag = None if gradient is None else _tag(gradient)
    if isinstance(tag, Place):
        raise CannotFollow("a parameter's gradient is no sum over examples")
    if tag is None and gradient is not None and bool(gradient.any()):
        raise CannotFollow("a parameter's gradient does not come from the cotangents")
    return tag


def _tag(tensor: Tensor) -> Tag | None:
    return tensor.__dict__.get("_examples")


def _set(tensor: Tensor, tag: Tag) -> None:
    vars(tensor)["_examples"] = tag


class _Following(TorchDispatchMode):
    """Marks the results of operations on marked tensors."""

    def __init__(self, examples: int):
        super().__init__()
        self.examples = examples
        self.held: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tags = [(leaf, tag) for leaf in _tensors(args) if (tag := _tag(leaf)) is not None]
        if kwargs and any(_tag(leaf) is not None for leaf in tree_flatten(kwargs)[0] if isinstance(leaf, Tensor)):
            raise CannotFollow(f"{func} has an argument by name that comes from the cotangents")
        if func._schema.is_mutable:
            self._check_writing(func, args, bool(tags))
        if not tags or func in CONSTANT:
            return func(*args, **kwargs)
        if any(isinstance(tag, Terms) for _, tag in tags):
            return self._of_sums(func, args, kwargs, tags)
        sums = SUMS.get(func)
        if sums is not None:
            self.held.update(x.untyped_storage().data_ptr() for x in _tensors(args))
            return sums(self.examples, func, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result._is_zerotensor():  # known to be zero, and not stored
            return result
        place = self._place(func, args, tags, result)
        if place is None:
            raise CannotFollow(f"{func} may mix examples")
        for part in (result,) if isinstance(result, Tensor) else result:
            _set(part, place)
        return result

    def _place(self, func: Any, args: Any, tags: list[tuple[Tensor, Any]], result: Any) -> Place | None:
        if is_entrywise(func):
            return broadcast(self.examples, tags, result if isinstance(result, Tensor) else result[0])
        if func in (aten.cat.default, aten.stack.default):
            return joined(tags, args[1] if len(args) > 1 else 0, func is aten.stack.default)
        rule = RULES.get(func)
        if rule is None or len(tags) > 1 or tags[0][0] is not args[0]:
            return None
        return rule(self.examples, tags[0][1], args, result)

    def _of_sums(self, func: Any, args: Any, kwargs: Any, tags: list[tuple[Tensor, Any]]) -> Any:
        """An operation on sums; what it gives is never read."""
        if not all(isinstance(tag, Terms) for _, tag in tags):
            raise CannotFollow(f"{func} joins a sum over examples with what is none")
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            raise CannotFollow(f"{func} has several results")
        _set(result, self._moved(func, args, kwargs, [tag for _, tag in tags]))
        return result

    def _moved(self, func: Any, args: Any, kwargs: Any, terms: list[Terms]) -> Terms:
        if func in KEEP_ORDER:
            return terms[0]
        if func is aten.t.default and args[0].dim() == 2 and _fits(terms[0], args[0]):
            return terms[0].transposed()
        if func is aten.add.Tensor and len(terms) == 1 and any(x._is_zerotensor() for x in args):
            return terms[0]
        if func in (aten.add.Tensor, aten.add_.Tensor) and len(terms) == 2 and not kwargs:
            both = terms[0].joined(terms[1])
            if both is not None and args[0].shape == args[1].shape:
                return both
        if func._schema.is_mutable:
            raise CannotFollow(f"{func} writes into a sum over examples")
        own: Any = [_tag(arg) if isinstance(arg, Tensor) else None for arg in args]
        if sum(tag is not None for tag in own) != len(terms):
            raise CannotFollow(f"{func} takes sums over examples in a list")
        return Terms(values=[ByExample(func, args, kwargs, own)])

    def _check_writing(self, func: Any, args: Any, marked: bool) -> None:
        """Written may be, entry by entry, what depends on the cotangents itself and is no part of a sum's terms."""
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if own is None or own.untyped_storage().data_ptr() in self.held:
            raise CannotFollow(f"{func} writes into a tensor of which a sum over examples was made")
        if marked and not (is_entrywise(func) and _tag(own) is not None):
            raise CannotFollow(f"{func} writes into a tensor")


class _NothingHidden(TorchFunctionMode):
    """Refuses what no operation below autograd shows: values handed to NumPy, tensors without their history."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in HIDDEN or func is _DATA:
            raise CannotFollow("the backward pass hides a tensor's values")
        return func(*args, **(kwargs or {}))


_DATA = torch.Tensor.data.__get__  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]


def _tensors(args: Any) -> list[Tensor]:
    found = [arg for arg in args if isinstance(arg, Tensor)]
    for arg in args:
        if isinstance(arg, (list, tuple)):
            found += [part for part in arg if isinstance(part, Tensor)]
    return found


def _fits(terms: Terms, sum: Tensor) -> bool:
    """Whether the terms' products and values have the two dimensions of their sum."""
    products = not terms.products or terms.sizes == tuple(sum.shape)
    return products and all(isinstance(x, Tensor) and x.shape[1:] == sum.shape for x in terms.values)


Sums = Callable[[int, Any, Any, Any], Any]


def _product(examples: int, func: Any, args: Any, kwargs: Any) -> Any:
    """Of a product of matrices: either it sums over examples, or they are in its rows, columns or batch."""
    added = func in (aten.addmm.default, aten.baddbmm.default)
    first, second = args[1:3] if added else args[:2]
    one, other = _tag(first), _tag(second)
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
        _set(result, of_product(first, second, of_first, examples))
        return result
    result = func(*args, **kwargs)
    if added and _tag(args[0]) not in (None, place):
        raise CannotFollow(f"{func} joins examples of different places")
    if added and _tag(args[0]) is not None and args[0].shape != result.shape:
        raise CannotFollow(f"{func} joins examples of different places")
    _set(result, place)
    return result


def _sum(examples: int, func: Any, args: Any, kwargs: Any) -> Any:
    place: Any = _tag(args[0])
    dims = args[0].dim()
    gone = sorted(dim % dims for dim in args[1]) if len(args) > 1 and args[1] else list(range(dims))
    result = func(*args, **kwargs)
    if place.dim in gone:
        _set(result, of_sum(args[0], place, gone, examples))
    else:
        moved: Any = RULES[aten.sum.dim_IntList](examples, place, args, result)
        _set(result, moved)
    return result


def _convolution_backward(examples: int, func: Any, args: Any, kwargs: Any) -> Any:
    slopes, images, weight = args[:3]
    mask = args[10]
    if _tag(images) is not None or _tag(weight) is not None or _tag(slopes) != Place(0) or len(slopes) != examples:
        raise CannotFollow(f"{func} may mix examples")
    of_weight = of_convolution(slopes, images, weight, args) if mask[1] else None
    if mask[1] and of_weight is None:
        raise CannotFollow("a transposed or grouped convolution, or one in three dimensions")
    image = func(*args[:10], [mask[0], False, False], **kwargs)[0]
    if image is not None:
        _set(image, Place(0))
    gradients = [torch.empty_like(weight) if mask[1] else None, None]
    if gradients[0] is not None and of_weight is not None:
        _set(gradients[0], of_weight)
    if mask[2]:
        gradients[1] = slopes.new_empty(slopes.shape[1])
        dims = [0, *range(2, slopes.dim())]
        _set(gradients[1], of_sum(slopes, Place(0), dims, examples))
    return image, *gradients


def _embedding(examples: int, func: Any, args: Any, kwargs: Any) -> Any:
    slopes, indices, rows, padding, by_frequency = args
    place = _tag(slopes)
    terms = None
    if isinstance(place, Place) and not by_frequency:
        terms = of_embedding(slopes, indices, rows, padding, place, examples)
    if terms is None:
        raise CannotFollow(f"{func} may mix examples")
    result = slopes.new_empty(rows, slopes.shape[-1])
    _set(result, terms)
    return result


SUMS: dict[Any, Sums] = {
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default), _product),
    **dict.fromkeys((aten.sum.dim_IntList, aten.sum.default), _sum),
    aten.convolution_backward.default: _convolution_backward,
    aten.embedding_dense_backward.default: _embedding,
}
