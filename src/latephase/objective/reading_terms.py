"""What a user gives as terms of a residual objective, read and checked, each error with the term's name."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_map

from .data import Chunk
from .residuals import Function, check_function

FORM = 'terms are a dict {"name": (function, points)} with function(model, points) -> residuals [N, k]'


def read_terms(terms: Any) -> tuple[dict[str, Function], dict[str, Any]]:
    """The functions and the points of the terms, by name; the points as they were given.

    Raises:
        TypeError: not a dict of pairs by name, or a function that is none.
        ValueError: no term.
    """
    names = _names(terms, FORM)
    if not names:
        raise ValueError(f"there is no term: {FORM}")
    functions, points = {}, {}
    for name, pair in terms.items():
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"term {name!r} must be a pair (function, points), got {type(pair).__name__}")
        functions[name], points[name] = check_function(name, pair[0]), pair[1]
    return functions, points


def read_weights(weights: Any, names: Sequence[str]) -> dict[str, float]:
    """The weight of each term, 1 where none is given.

    Raises:
        TypeError: not a dict of numbers.
        ValueError: a weight of no term, or one that is not finite and >= 0.
    """
    given = {} if weights is None else weights
    for name in _names(given, 'weights are a dict {"name": number}'):
        if name not in names:
            raise ValueError(f"a weight is given for {name!r}, but the terms are {_listed(names)}")
        weight = given[name]
        if not isinstance(weight, Real) or isinstance(weight, bool):
            raise TypeError(f"the weight of term {name!r} must be a number, got {weight!r}; float(...) makes one")
        if not (math.isfinite(weight) and float(weight) >= 0):
            raise ValueError(f"the weight of term {name!r} must be finite and >= 0, got {weight!r}")
    return {name: float(given.get(name, 1.0)) for name in names}


def read_points(name: str, points: Any) -> Chunk:
    """A term's points as one chunk, without targets.

    Raises:
        TypeError: not a tensor, or a tuple or dict of tensors, of floating-point numbers.
        ValueError: tensors without rows or of unequal rows, or a value that is not finite.
    """
    points = tuple(points) if isinstance(points, list) else points
    leaves = tree_flatten_with_path(points)[0]
    for path, leaf in leaves:
        where = "".join(str(key) for key in path)
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"points{where} of term {name!r} must be a tensor, or the points a tuple or dict of tensors, got "
                f"{type(leaf).__name__}; torch.as_tensor makes tensors of arrays and numbers"
            )
        if not leaf.dim():
            raise ValueError(f"points{where} of term {name!r} is a scalar, which has no rows; let the function hold it")
        if len(leaf) != len(leaves[0][1]):
            raise ValueError(
                f"points of term {name!r} have {len(leaves[0][1])} and {len(leaf)} rows (points{where}); dimension 0 "
                "of every tensor counts the points"
            )
    if not leaves:
        raise TypeError(f"term {name!r} has no tensor of points, got {points!r}")
    if not any(leaf.is_floating_point() for _, leaf in leaves):
        raise TypeError(
            f"points of term {name!r} are {leaves[0][1].dtype}, at which nothing can be differentiated; give them in "
            "the parameters' dtype: points.to(torch.get_default_dtype())"
        )
    chunk = Chunk({name: tree_map(lambda leaf: leaf.detach(), points)}, None, len(leaves[0][1]))
    if found := nonfinite_points(chunk):
        raise ValueError(f"{found}; leave these points out")
    return chunk


def check_redrawn(data: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """The points of some terms, by name.

    Raises:
        TypeError: not a dict by name.
        ValueError: an unknown term.
    """
    for name in _names(data, 'an objective made by from_residuals takes the points of some terms: {"name": points}'):
        if name not in names:
            raise ValueError(f"there is no term {name!r}: the terms are {_listed(names)}")
    return data


def check_alike(name: str, points: Any, before: Any) -> None:
    """Refuse points of another kind than a term's before.

    Raises:
        ValueError: another structure, dtype, or shape of a point.
    """
    (leaves, form), (others, other_form) = tree_flatten(points), tree_flatten(before)
    kinds, known = ([(str(leaf.dtype), list(leaf.shape[1:])) for leaf in each] for each in (leaves, others))
    if form != other_form or kinds != known:
        raise ValueError(
            f"points of term {name!r} are {_kinds(kinds)}, where the term's points were {_kinds(known)}: `on` takes "
            "points of the same kind, as many as you like; other ones need an objective of their own"
        )


def _kinds(kinds: Sequence[tuple[str, list[int]]]) -> str:
    return ", ".join(f"{dtype.removeprefix('torch.')} {['N', *shape]}" for dtype, shape in kinds)


def _names(given: Any, form: str) -> list[str]:
    if not isinstance(given, Mapping):
        raise TypeError(f"{form}; got {type(given).__name__}")
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"{form}; got the name {name!r}, which is no string")
    return list(given)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def nonfinite_points(chunk: Chunk, before: int = 0) -> str | None:
    """Where a chunk's points are not finite, in words; None where they are.

    Args:
        chunk: of one term.
        before: rows of the term in chunks before it.
    """
    ((name, points),) = chunk.inputs.items()
    for path, leaf in tree_flatten_with_path(points)[0]:
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            rows = (~torch.isfinite(leaf)).reshape(len(leaf), -1).any(1).nonzero().flatten()
            what = f"points{''.join(str(key) for key in path)} of term {name!r}"
            return f"{what} are not finite in {len(rows)} rows, the first row {before + int(rows[0])}"
    return None
