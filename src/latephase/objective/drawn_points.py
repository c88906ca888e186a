"""Points that a user's drawer gives, checked, and chosen by their residuals where that is wanted."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .over_terms import OverTerms
from .randomness import cuda_devices, forked
from .reading_terms import check_alike, read_points

Draw = Callable[[int, torch.Generator], Any]
"""(n, generator) -> n points of a term, a tensor [n, d] or a tuple or dict of tensors, as the term's points are."""


class Adaptive(Protocol):
    """A rule that chooses points by their residuals, as `RAD` does."""

    @property
    def candidates(self) -> int:
        """How many candidates are drawn for each point that is chosen."""
        ...

    def choose(self, residuals: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Rows of n of the candidates, whose residuals are given, int64 [n]."""
        ...


def drawn(objective: OverTerms, name: str, draw: Draw, n: int, generator: torch.Generator) -> Any:
    """Some points of a term, in the dtypes and on the devices of the term's points.

    Torch's own generators start from a seed of the generator's while the drawer runs, and stand afterwards where they
    stood: what draws from those (`torch.rand(n, 2)`, a scrambled `SobolEngine`) is reproducible as well.

    Raises:
        TypeError: the drawer gives no points, as `Objective.from_residuals` takes them.
        ValueError: the same; or another number or kind of points, fewer digits than the term's, or some that are not
            finite.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    try:
        with forked(seed, cuda_devices(objective.model)):
            given = draw(n, generator)
        whole = read_points(name, given)
        if whole.rows != n:
            raise ValueError(
                f"the drawer of term {name!r} gives {whole.rows} points where {n} were asked for: it is called as "
                "draw(n, generator) and returns n rows"
            )
        kind = objective.program.kinds[name]
        points = _alike(name, whole.inputs[name], kind)
        check_alike(name, points, kind)
        return points
    except Exception as error:
        error.add_note(f"from the drawer of term {name!r}, called for {n} points")
        raise


def _alike(name: str, points: Any, kind: Any) -> Any:
    """The points in dtypes and on devices of others, where they are of one structure."""
    leaves, form = tree_flatten(points)
    others, other_form = tree_flatten(kind)
    if form != other_form:
        return points

    def moved(leaf: Tensor, other: Tensor) -> Tensor:
        if leaf.is_floating_point() and other.is_floating_point():
            own, wanted = (torch.finfo(each.dtype).eps for each in (leaf, other))
            if own > wanted:
                dtypes = [str(each.dtype).removeprefix("torch.") for each in (leaf, other)]
                raise ValueError(
                    f"the drawer of term {name!r} gives points in {dtypes[0]}, where the term's points are "
                    f"{dtypes[1]} and have more digits: let it draw with dtype=torch.{dtypes[1]}"
                )
            leaf = leaf.to(other.dtype)
        return leaf.to(other.device)

    return tree_unflatten([moved(*pair) for pair in zip(leaves, others, strict=True)], form)


def chosen(
    objective: OverTerms, name: str, draw: Draw, n: int, generator: torch.Generator, adaptive: Adaptive | None
) -> Any:
    """Some points of a term, chosen among candidates by their residuals where there is a rule for it.

    Raises:
        TypeError: as `drawn`.
        ValueError: as `drawn`; or residuals that are not finite at some candidates.
    """
    if adaptive is None:
        return drawn(objective, name, draw, n, generator)
    candidates = drawn(objective, name, draw, adaptive.candidates * n, generator)
    residuals = objective.residuals_at(name, candidates)
    bad = ~torch.isfinite(residuals).reshape(len(residuals), -1).all(1)
    if bool(bad.all()):  # training has diverged, which the optimizer will tell
        residuals = torch.zeros_like(residuals)
    elif bool(bad.any()):
        raise ValueError(
            f"the residuals of term {name!r} are not finite at {int(bad.sum())} of {len(bad)} candidates, the first in "
            f"row {int(bad.nonzero()[0, 0])}, where the function divides by zero or overflows: let the drawer leave "
            "such points out"
        )
    rows = adaptive.choose(residuals, n, generator)
    return tree_map(lambda leaf: leaf[rows.to(leaf.device)], candidates)
