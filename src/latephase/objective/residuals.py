"""The program of residual objectives: named terms, each a function of the model and of points of its own."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .data import Chunk
from .program import Between, LossOfOutputs, Precision
from .rank_protocol import Reduce

Function = Callable[[nn.Module, Any], Tensor]
"""(model, points) -> residuals [N, k] or [N]."""


class Residuals(LossOfOutputs):
    """One term's residuals as outputs, and the sum of their squares as loss: squared error with targets of zero.

    A chunk's inputs are a dict of one entry, the term's name and its points.

    Args:
        functions: of the terms, by name.
        weights: of all terms, by name.

    Attributes:
        weights: w_m by name.
        kinds: empty points of each term, to compare others with.
        dtypes: of the terms' residuals, of which they are known.
    """

    def __init__(self, functions: Mapping[str, Function], weights: Mapping[str, float]):
        self.functions = OfTerms(functions)
        super().__init__(nn.MSELoss(reduction="sum"), self.functions)
        self.weights = dict(weights)
        self.kinds: dict[str, Any] = {}
        self.dtypes: dict[str, torch.dtype] = {}

    def __call__(
        self, model: nn.Module, chunk: Chunk, precision: Precision | None = None, between: Between | None = None
    ) -> tuple[Tensor, Any]:
        """As `LossOfOutputs`; an error from inside says of which term, and at what points."""
        try:
            return super().__call__(model, chunk, precision, between)
        except Exception as error:
            dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
            error.add_note(
                f"in the residuals of term {term_of(chunk)!r}, whose points are {_in_words(chunk.inputs)}; the "
                f"parameters are {', '.join(dtypes)}"
            )
            raise

    def _taking_part(self, chunk: Chunk) -> tuple[Any, ...]:
        return self.loss, self.functions.functions[term_of(chunk)]

    def loss_of(self, outputs: Any, targets: Any) -> Tensor:
        """The sum of squares; without targets also where the shape of a row's residuals is not known yet."""
        return super().loss_of(outputs, torch.zeros_like(outputs) if targets is None else targets)

    def counts(self, chunks: Sequence[Chunk], reduce: Reduce, device: torch.device) -> dict[str, float]:
        """Rows n_m of each term over all ranks.

        Raises:
            ValueError: a term has none, on every rank alike.
        """
        own = dict.fromkeys(self.weights, 0)
        for chunk in chunks:
            own[term_of(chunk)] += chunk.rows
        wide = torch.float32 if device.type == "mps" else torch.float64
        (rows,) = reduce.sum([torch.tensor(list(own.values()), dtype=wide, device=device)], "the rows of each term")
        found = dict(zip(own, rows.tolist(), strict=True))
        for name, count in found.items():
            if not count:
                on_ranks = " on any rank" if reduce.size > 1 else ""
                raise ValueError(f"term {name!r} has no points{on_ranks}: give it some, or leave it out of the terms")
        return found

    def weigh(self, chunks: Sequence[Chunk], reduce: Reduce, device: torch.device) -> list[float]:
        """The weight w_m / n_m of each of this rank's chunks, since f is a sum of means of squares.

        Raises:
            ValueError: as `counts`.
        """
        rows = self.counts(chunks, reduce, device)
        return [self.weights[name] / rows[name] for name in map(term_of, chunks)]


class OfTerms:
    """(model, {name: points}) -> the residuals of that term.

    Args:
        functions: of the terms, by name.

    Attributes:
        tails: shape of one row's residuals, [k] or [], of the terms of which it is known.
    """

    def __init__(self, functions: Mapping[str, Function]):
        self.functions = dict(functions)
        self.tails: dict[str, tuple[int, ...]] = {}

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Call the term's function.

        Raises:
            TypeError: it returns no tensor of floating-point numbers.
            ValueError: it returns one of another shape than a row for each point, or than before.
        """
        ((name, points),) = inputs.items()
        # Tensors of the pass's own: a function's `points.requires_grad_()` is not to stay at the data.
        own = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, points)
        residuals = self.functions[name](model, own)
        if not isinstance(residuals, Tensor):
            raise TypeError(
                f"the function of term {name!r} must return a tensor of residuals [N, k] or [N], got "
                f"{type(residuals).__name__}"
            )
        if not residuals.is_floating_point():
            raise TypeError(f"the function of term {name!r} must return floating-point numbers, got {residuals.dtype}")
        self._check_shape(name, residuals, len(tree_leaves(own)[0]))
        return residuals

    def _check_shape(self, name: str, residuals: Tensor, rows: int) -> None:
        shape, tail = list(residuals.shape), self.tails.get(name)
        if residuals.dim() not in (1, 2) or shape[0] != rows:
            raise ValueError(
                f"the function of term {name!r} returns residuals of shape {shape} at {rows} points; return [N, k] or "
                "[N], a row for each point, and no mean or sum over them; what belongs to a point, such as a value "
                "measured there, is given with the points: (function, (points, values))"
            )
        if tail is not None and tuple(shape[1:]) != tail:
            raise ValueError(
                f"the function of term {name!r} returns residuals of shape {shape}, where it has returned "
                f"{['N', *tail]} before: the residuals of a point must be the same in number always"
            )


def term_of(chunk: Chunk) -> str:
    """The name of a chunk's term."""
    return next(iter(chunk.inputs))


def check_function(name: str, function: Any) -> Any:
    """The function of a term.

    Raises:
        TypeError: not a callable of (model, points).
    """
    if not callable(function):
        raise TypeError(
            f"term {name!r} must be a pair (function, points) with a callable (model, points) -> residuals, got "
            f"{type(function).__name__} as function"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin
        return function
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"the function of term {name!r} is called as function(model, points), but takes {signature} ({error}); "
            "several tensors of points come as one tuple or dict"
        ) from error
    return function


def _in_words(tree: Any) -> str:
    leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return ", ".join(f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}" for leaf in leaves)
