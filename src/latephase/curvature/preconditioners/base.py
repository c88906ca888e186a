"""What every preconditioner has: settings, an estimate that is kept, and the inverse at a damping."""

import abc
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...objective import shared_seed as seed_of_ranks
from ..linearization import Linearization

Estimate = dict[str, Tensor]
"""What is estimated, without damping; it goes into the optimizer's state."""

Apply = Callable[[Tensor], Tensor]
"""r [P] -> M^-1 r [P]."""


class Preconditioner(abc.ABC):
    """A matrix M close to the damped curvature, whose inverse is cheap.

    To write one, derive from this class and give it the two methods. What it learns about the curvature goes into the
    estimate; everything that depends on the damping, which is another at every step, goes into the inverse.

    Attributes:
        every: number of steps after which the estimate is made anew. Default 1, at every step.
    """

    every: int = 1
    entries: ClassVar[tuple[str, ...]] = ()
    """Names in its estimate; "diagonal" is one of [P]. None said, none checked."""

    @abc.abstractmethod
    def estimate(self, curved: Linearization, blocks: Sequence[int]) -> Estimate:
        """Estimate the curvature without damping, the objective's L2 term included.

        Args:
            curved: the curvature at the current parameters.
            blocks: sizes of the consecutive blocks of the flat vector, summing to P.

        Returns:
            Tensors by name, equal on all ranks.
        """

    @abc.abstractmethod
    def inverse(self, estimate: Estimate, damping: float | Tensor, blocks: Sequence[int]) -> Apply:
        """The inverse of the estimate with damping.

        Args:
            estimate: what `estimate` returned.
            damping: lambda, one number or one for each parameter [P].
            blocks: as for `estimate`.

        Returns:
            r [P] -> M^-1 r [P], symmetric positive definite and block-diagonal.
        """


def owners(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter, by its id."""
    return Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)


def decay_of(curved: Linearization) -> Tensor:
    """The diagonal of the L2 term's Hessian [P]."""
    space = curved.space
    coefficients = curved.objective.weight_decay.of(space.parameters)
    pieces = [
        torch.full((size,), each, dtype=space.dtype) for size, each in zip(space.sizes, coefficients, strict=True)
    ]
    return torch.cat(pieces).to(space.device)


def shared_seed(curved: Linearization) -> int:
    """A seed from torch's CPU generator, the first rank's on every rank."""
    return seed_of_ranks(curved.objective.reduce.share, curved.space.device)


def diagonal_inverse(diagonal: Tensor, damping: float | Tensor, exponent: float, blocks: Sequence[int]) -> Apply:
    """R -> (D + lambda)^-exponent r.

    Within each block entries of D + lambda below `eps` times the largest are raised to that, eps being the rounding
    unit of the dtype: with no damping, a parameter on which nothing depends would otherwise be divided by zero. A block
    of zeros is left as it is, M being the identity there.

    Args:
        diagonal: D >= 0 [P].
        damping: lambda, one number or one for each parameter [P].
        exponent: of the diagonal.
        blocks: sizes of the consecutive blocks.
    """
    damped = (diagonal + damping).to(diagonal.dtype)
    scale = torch.cat([floored(piece) for piece in damped.split(list(blocks))]).pow_(-exponent)
    return lambda r: scale * r


def floored(piece: Tensor) -> Tensor:
    """Entries >= 0 of a block, those below `eps` times the largest raised to that; ones where all are zero."""
    numbers = torch.finfo(piece.dtype)
    largest = piece.max()
    floor = torch.where(largest > numbers.tiny / numbers.eps, largest * numbers.eps, 1.0)
    return torch.maximum(piece, floor)


def check_whole(name: str, value: Any, least: int = 1, optional: bool = False) -> None:
    """Check that a setting is a whole number.

    Raises:
        ValueError: naming the setting and what would do.
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        choice = f"a whole number >= {least}"
        raise ValueError(f"{name} must be {'None or ' if optional else ''}{choice}, got {value!r}")


def check_exponent(value: Any) -> None:
    """Check the exponent of a diagonal.

    Raises:
        ValueError: not a number in (0, 1].
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and 0 < value <= 1):
        raise ValueError(f"exponent must be a number > 0 and <= 1 (1 for the diagonal itself), got {value!r}")
