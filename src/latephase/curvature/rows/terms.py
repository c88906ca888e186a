"""Sums over examples, kept as their terms: what each example adds to a parameter's gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .places import Place

SCRATCH = 2**19
"""Bytes of a block of products: as many as stay in a core's cache until they are copied to their place."""
DIRECT = 2**12
"""Entries of one example's product from which it is worth to write it where it belongs, one by one."""


class Factor(Protocol):
    """A factor of products, [examples, ...], of which a slice of the examples can be had."""

    def __getitem__(self, examples: slice, /) -> Tensor:
        """The factor of some examples."""
        ...


@dataclass
class Terms:
    """What each example adds to a sum, as a sum of products of matrices and of values.

    Attributes:
        products: pairs of factors, [examples, m, k] and [examples, k, n], m n being the number of entries.
        values: [examples, ...], each with the entries in the order of the sum's.
        sizes: m and n of the products.
        room: numbers that a product takes for each example, its factors included.
    """

    products: list[tuple[Factor, Factor]] = field(default_factory=list)
    values: list[Factor] = field(default_factory=list)
    sizes: tuple[int, int] = (0, 0)
    room: int = 0

    def joined(self, other: "Terms") -> "Terms | None":
        """The terms of both sums; None where their products are of different sizes."""
        if self.products and other.products and self.sizes != other.sizes:
            return None
        sizes = self.sizes if self.products else other.sizes
        room = max(self.room, other.room)
        return Terms([*self.products, *other.products], [*self.values, *other.values], sizes, room)

    def transposed(self) -> "Terms":
        """Of a matrix, with products of its sizes, the terms of the transposed sum."""
        pairs = [(_transposed(b), _transposed(a)) for a, b in self.products]
        return Terms(pairs, [_transposed(value) for value in self.values], (self.sizes[1], self.sizes[0]), self.room)

    def write(self, out: Tensor, examples: slice) -> None:
        """Write the terms of some examples to [some, entries], whose entries are adjacent in memory."""
        if self.products:
            self._write_products(out.unflatten(1, self.sizes), examples)
        for position, value in enumerate(self.values):
            part = value[examples].reshape(out.shape)
            if position or self.products:
                out.add_(part)
            else:
                out.copy_(part)

    def _write_products(self, out: Tensor, examples: slice) -> None:
        """Write the sum of the products, in blocks where it takes memory for a while."""
        products = self.products
        if len(products) > 1:
            products, examples = [_side_by_side(products, examples)], slice(0, len(out))
        left, right = products[0]
        entries = self.sizes[0] * self.sizes[1]
        is_outer = left[examples].shape[2] == 1
        is_direct = is_outer or entries >= DIRECT
        room = max(self.room, 0 if is_direct else entries)
        size = max(SCRATCH // (room * out.itemsize), 1) if room else len(out)
        for start in range(0, len(out), size):
            block = out[start : start + size]
            some = slice(examples.start + start, examples.start + start + len(block))
            if is_outer:
                torch.mul(left[some], right[some], out=block)
            elif is_direct:
                torch.bmm(left[some], right[some], out=block)
            else:
                block.copy_(torch.bmm(left[some], right[some]))

    def shared(self, others: Sequence["Terms | None"]) -> Factor | None:
        """The one right factor that the terms have in common with others, all being one product; None otherwise."""
        if len(self.products) != 1 or self.values or not others:
            return None
        right = self.products[0][1]
        for other in others:
            if other is None or len(other.products) != 1 or other.values or other.sizes != self.sizes:
                return None
            if not _is_same(right, other.products[0][1]):
                return None
        return right

    def own(self) -> list[Tensor]:
        """The tensors that the terms hold, without the right factors: a layer's inputs, which the graph keeps."""
        factors = [*self.values, *(left for left, _ in self.products)]
        inner = [x.terms for x in factors if isinstance(x, ByExample)]
        found = [x for x in factors if isinstance(x, Tensor)]
        return found + [x for terms in inner for each in terms if each is not None for x in each.own()]

    def of(self, examples: slice, shape: Sequence[int]) -> Tensor:
        """The terms of some examples, [some, *shape]."""
        like = self.values[0][examples] if self.values else self.products[0][0][examples]
        found = like.new_empty(len(like), torch.Size(shape).numel())
        self.write(found, examples)
        return found.view(len(like), *shape)


def write_columns(out: Tensor, terms: Sequence[Terms | None], examples: slice) -> None:
    """Write the terms of some examples in several columns, to [some, columns, entries].

    Layers have inputs in common between the columns, and differ in the slopes.
    """
    first = terms[0]
    right = None if first is None or first.sizes[0] * first.sizes[1] != out.shape[2] else first.shared(terms[1:])
    if first is None or right is None:
        for column, own in enumerate(terms):
            if own is None:
                out[:, column].zero_()
            else:
                own.write(out[:, column], examples)
        return
    lefts = [own.products[0][0] for own in terms if own is not None]
    split = out.unflatten(2, first.sizes)
    is_outer = lefts[0][examples].shape[2] == 1
    size = len(out) if is_outer else max(SCRATCH // (max(first.room, out[0].numel()) * out.itemsize), 1)
    for start in range(0, len(out), size):
        block = split[start : start + size]
        some = slice(examples.start + start, examples.start + start + len(block))
        left, factor = torch.stack([each[some] for each in lefts], dim=1), right[some]
        if is_outer:
            torch.mul(left, factor.unsqueeze(1), out=block)
        else:
            block.copy_(torch.bmm(left.flatten(1, 2), factor).view(block.shape))


def _is_same(one: Factor, other: Factor) -> bool:
    """Whether two factors are the same numbers in memory."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())
    return type(one) is type(other) and one == other


def _side_by_side(products: Sequence[tuple[Factor, Factor]], examples: slice) -> tuple[Tensor, Tensor]:
    """The factors of one product that is the sum of several."""
    left = torch.cat([left[examples].mT for left, _ in products], dim=1)
    return left.mT, torch.cat([right[examples] for _, right in products], dim=1)


def _transposed(factor: Factor) -> Factor:
    if isinstance(factor, Tensor):
        return factor.mT
    return factor.factor if isinstance(factor, _Transposed) else _Transposed(factor)


class _Transposed:
    def __init__(self, factor: Factor):
        self.factor = factor

    def __getitem__(self, examples: slice, /) -> Tensor:
        return self.factor[examples].mT


Tag = Place | Terms
"""What is known of a tensor that depends on the cotangents."""


def tag_of(tensor: Tensor) -> Tag | None:
    """What a tensor was marked with."""
    return tensor.__dict__.get("_examples")


def mark(tensor: Tensor, tag: Tag) -> None:
    """Mark a tensor, which keeps the mark as long as there is anything of it."""
    vars(tensor)["_examples"] = tag


def examples_first(x: Tensor, place: Place, examples: int) -> Tensor:
    """[examples, ...], the other entries of the examples' dimension left in its place."""
    outer = x.shape[place.dim] // (examples * place.inner)
    split = x.unflatten(place.dim, (outer, examples, place.inner)).movedim(place.dim + 1, 0)
    return split.flatten(place.dim + 1, place.dim + 2)


def of_product(first: Tensor, second: Tensor, place: Place, examples: int) -> Terms:
    """Of a product of matrices, in a batch or not, that sums over examples; their place is that in the first."""
    left = examples_first(first, place, examples)
    right = examples_first(second, Place(place.dim - 1, place.inner), examples)
    if first.dim() == 3:
        return Terms(values=[torch.matmul(left, right)])
    return Terms([(left, right)], sizes=(first.shape[0], second.shape[1]))


def of_sum(x: Tensor, place: Place, dims: Sequence[int], examples: int) -> Terms:
    """Of a sum over the dimension of the examples, and others."""
    split = examples_first(x, place, examples)
    others = [dim + 1 for dim in dims if split.shape[dim + 1] > 1]
    return Terms(values=[split.sum(others) if others else split])


class ByExample:
    """Of an operation on sums, what each example's terms make by themselves.

    Args:
        func: the operation.
        args: its arguments, sums among them with their terms.
        kwargs: those by name.
        terms: of each argument; None for what is no sum.
    """

    def __init__(self, func: Callable[..., Any], args: Any, kwargs: Any, terms: Sequence[Terms | None]):
        self.func, self.kwargs, self.terms = func, kwargs, terms
        self.args = [arg if own is None else arg.shape for arg, own in zip(args, terms, strict=True)]

    def __getitem__(self, examples: slice, /) -> Tensor:
        args = [arg if own is None else own.of(examples, arg) for arg, own in zip(self.args, self.terms, strict=True)]
        dims = tuple(None if own is None else 0 for own in self.terms)
        return torch.func.vmap(lambda *own: self.func(*own, **self.kwargs), in_dims=dims)(*args)
