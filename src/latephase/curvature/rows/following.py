"""Rows of many examples by one backward pass of their chunk.

A parameter's gradient is a sum over examples: a matrix product that sums over them, a sum along their dimension. The
pass runs with every tensor that comes from the cotangents knowing where its examples are (`places`), and where such a
sum is made, its terms are kept instead (`terms`). The idea is that of Goodfellow (2015, "Efficient Per-Example Gradient
Computations"), for whatever the pass consists of.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from .places import CONSTANT, RULES, CannotFollow, Place, broadcast, is_entrywise, joined
from .sums import SUMS
from .terms import ByExample, Terms, mark, tag_of

aten = torch.ops.aten

HIDDEN = ("tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage")
"""Functions of a tensor that hand out its values or its memory."""
KEEP_ORDER = (aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.detach.default)
"""Operations on a sum whose terms stay what they are."""

AFFINE = {
    aten.add.Tensor: 0, aten.sub.Tensor: 0, aten.add_.Tensor: 0, aten.sub_.Tensor: 0, aten.rsub.Tensor: 0,
    aten.cat.default: 0, aten.stack.default: 0, aten.where.self: 1, aten.where.ScalarOther: 1,
}  # fmt: skip
"""Operations that pass on what does not come from the cotangents, and which arguments are added."""


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
        mark(u, Place(0))
    mode = _Following(examples)
    with _NothingHidden(), mode:
        # torch.autograd.grad itself would be a function that the mode sees, and stand aside for the passes within.
        found = _engine_run_backward(
            tuple(outputs), tuple(own), True, False, tuple(leaves), allow_unreachable=True, accumulate_grad=False
        )
    return [_terms_of(each) for each in found]


def _terms_of(gradient: Tensor | None) -> Terms | None:
    tag = None if gradient is None else tag_of(gradient)
    if isinstance(tag, Place):
        raise CannotFollow("a parameter's gradient is no sum over examples")
    if tag is None and gradient is not None and bool(gradient.any()):
        raise CannotFollow("a parameter's gradient does not come from the cotangents")
    return tag


class _Following(TorchDispatchMode):
    """Marks the results of operations on marked tensors."""

    def __init__(self, examples: int):
        super().__init__()
        self.examples = examples
        self.held: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():  # what is done here is not the pass's own
            return self._of_operation(func, args, kwargs or {})

    def _of_operation(self, func: Any, args: Any, kwargs: Any) -> Any:
        tags = [(leaf, tag) for leaf in _tensors(args) if (tag := tag_of(leaf)) is not None]
        if kwargs and any(tag_of(leaf) is not None for leaf in tree_flatten(kwargs)[0] if isinstance(leaf, Tensor)):
            raise CannotFollow(f"{func} has an argument by name that comes from the cotangents")
        if func._schema.is_mutable:
            self._check_writing(func, args, bool(tags))
        if not tags or func in CONSTANT:
            return func(*args, **kwargs)
        if func in AFFINE and any(
            tag_of(x) is None and not x._is_zerotensor() and bool(x.any()) for x in _tensors(args[AFFINE[func] :])
        ):
            raise CannotFollow(f"{func} adds what does not come from the cotangents")
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
            mark(part, place)
        return result

    def _place(self, func: Any, args: Any, tags: list[tuple[Tensor, Any]], result: Any) -> Place | None:
        if is_entrywise(func):
            return broadcast(self.examples, tags, result if isinstance(result, Tensor) else result[0])
        if func in (aten.cat.default, aten.stack.default):
            return joined(tags, args[1] if len(args) > 1 else 0, func is aten.stack.default)
        rule, moved = RULES.get(func), args[2] if func is aten.index_put.default else args[0]
        if rule is None or len(tags) > 1 or tags[0][0] is not moved:
            return None
        return rule(self.examples, tags[0][1], args, result)

    def _of_sums(self, func: Any, args: Any, kwargs: Any, tags: list[tuple[Tensor, Any]]) -> Any:
        """An operation on sums; what it gives is never read."""
        if not all(isinstance(tag, Terms) for _, tag in tags):
            raise CannotFollow(f"{func} joins a sum over examples with what is none")
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            raise CannotFollow(f"{func} has several results")
        mark(result, self._moved(func, args, kwargs, [tag for _, tag in tags]))
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
        own: Any = [tag_of(arg) if isinstance(arg, Tensor) else None for arg in args]
        if sum(tag is not None for tag in own) != len(terms):
            raise CannotFollow(f"{func} takes sums over examples in a list")
        return Terms(values=[ByExample(func, args, kwargs, own)])

    def _check_writing(self, func: Any, args: Any, marked: bool) -> None:
        """Written may be, entry by entry, what depends on the cotangents itself and is no part of a sum's terms."""
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if own is None or own.untyped_storage().data_ptr() in self.held:
            raise CannotFollow(f"{func} writes into a tensor of which a sum over examples was made")
        if marked and not (is_entrywise(func) and tag_of(own) is not None):
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
