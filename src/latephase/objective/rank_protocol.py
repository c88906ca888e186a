"""What an objective needs of a set of ranks, and one process alone as such a set."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import torch.distributed as dist
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class RankError(RuntimeError):
    """Another rank failed, or the ranks do not do the same; raised on every rank that did not fail itself.

    Attributes:
        ranks: global numbers of the ranks that failed; empty where none did by itself.
    """

    def __init__(self, message: str, ranks: Sequence[int] = (), group: dist.ProcessGroup | None = None):
        super().__init__(message)
        self.ranks = tuple(ranks)
        self.group = group


def as_one_rank(method: Callable[P, R]) -> Callable[P, R]:
    """A method within `together` of its object's `reduce`."""

    @functools.wraps(method)
    def together(*args: P.args, **kwargs: P.kwargs) -> R:
        with getattr(args[0], "reduce").together():  # noqa: B009
            return method(*args, **kwargs)

    return together


class Reduce(Protocol):
    """What the objective needs of a set of ranks."""

    rank: int
    size: int

    def sum(self, tensors: Sequence[Tensor], what: str = "a sum") -> tuple[Tensor, ...]:
        """Sum each tensor over the ranks; may overwrite its arguments. `what` says what for, in messages."""
        ...

    def concatenate(self, tensors: Sequence[Tensor], what: str = "rows") -> tuple[Tensor, ...]:
        """Each tensor's rows of all ranks, in the order of the ranks; a rank may have none."""
        ...

    def share(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor, on every rank."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, of any kind that can be pickled, in the order of the ranks."""
        ...

    def compare(self, named: Callable[[], Mapping[str, Any]]) -> None:
        """Raise ValueError where ranks hold different tensors or settings."""
        ...

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Within, an exception on one rank reaches all."""
        ...

    def meet(self) -> None:
        """Wait until every rank is here; an exception where one failed on its way."""
        ...


class Local:
    """One process: every sum is its own term."""

    rank = 0
    size = 1

    def sum(self, tensors: Sequence[Tensor], what: str = "a sum") -> tuple[Tensor, ...]:
        """Return the tensors as they are."""
        return tuple(tensors)

    concatenate = sum

    def share(self, tensor: Tensor) -> Tensor:
        """Return the tensor as it is."""
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]

    def compare(self, named: Callable[[], Mapping[str, Any]]) -> None:
        """One rank agrees with itself."""

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else is there to be told."""
        return contextlib.nullcontext()

    def meet(self) -> None:
        """Nobody is waited for."""
