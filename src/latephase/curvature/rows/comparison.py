"""Rows compared with a pull-back of the whole chunk."""

import weakref
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn

from ...objective import Residuals, term_of
from ..eager import ForwardPass
from ..loss import Product


def is_due(forward: ForwardPass) -> bool:
    """Whether rows that were followed are compared: use number 1, 2, 4, 8, ... of a model on data of a kind are."""
    objective = forward.objective
    uses = _uses.setdefault(objective.model, {})
    kind = objective.kind_of(forward.chunk)
    uses[kind] = uses.get(kind, 0) + 1
    return uses[kind] & (uses[kind] - 1) == 0


_uses: "weakref.WeakKeyDictionary[nn.Module, dict[Hashable, int]]" = weakref.WeakKeyDictionary()


class Comparison:
    """Whether rows u'J~ of a random vector u are what a pull-back of the whole chunk makes of it.

    Rows that were computed example by example are those of the chunk only where no example's outputs depend on other
    examples.

    Args:
        forward: the pass over the chunk.
        root: of the loss's Hessian in the outputs.
        scale: of the rows.
        dtypes: in which both are computed.
    """

    def __init__(self, forward: ForwardPass, root: Product, scale: float, dtypes: Iterable[torch.dtype]):
        self._forward = forward
        self._eps = max(torch.finfo(dtype).eps for dtype in dtypes)
        generator = torch.Generator(forward.space.device).manual_seed(0)
        # No signs: what examples exchange would cancel where theirs are the same.
        self._vector = [
            torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device) for x in forward.outputs
        ]
        self._expected = forward.space.flatten(forward.pull(root([scale * u for u in self._vector])))
        self._found = torch.zeros_like(self._expected)
        self._squares = torch.zeros_like(self._expected[0])
        examples = len(self._vector[0])
        self._by_example = torch.cat([each.reshape(examples, -1) for each in self._vector], dim=1)

    def add(self, piece: Tensor, examples: range, columns: range) -> None:
        """Count rows in."""
        u = self._by_example[examples.start : examples.stop, columns.start : columns.stop].reshape(-1)
        self._found += u.to(piece.dtype) @ piece
        self._squares += torch.linalg.vector_norm(piece).square()

    def judge(self) -> None:
        """Raise where they differ by more than rounding."""
        difference = float((self._found - self._expected).norm())
        is_near = difference <= 3 * self._eps**0.5 * float(self._squares.sqrt())
        if not is_near and bool(self._expected.isfinite().all()):
            refuse_mixed(self._forward)


def refuse_mixed(forward: ForwardPass) -> None:
    """Raise the error of a chunk whose examples depend on each other.

    Raises:
        ValueError: always.
    """
    if isinstance(forward.objective.program, Residuals):
        raise ValueError(
            f"the residuals of term {term_of(forward.chunk)!r} at a point depend on other points (by a mean or a "
            "difference over them, say), so that there is no row for each; let the function compute those of a point "
            "from this point alone, put several points into one as a tuple (lower, upper), or use products (matvec)"
        )
    raise ValueError(
        "the model's outputs for an example depend on other examples (as those of batch norm in training mode "
        "do), or dimension 0 of inputs and targets does not count the examples: there is no row for each; "
        "rewrite the model, put it into eval mode, or use products (matvec)"
    )
