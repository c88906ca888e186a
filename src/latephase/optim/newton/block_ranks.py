"""Blocks shared out between ranks: each solves its own, and the iterates are gathered."""

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...objective import ProcessGroup
from ...solve import CGResult, conjugate_gradient
from ..parts import check_same_data

if TYPE_CHECKING:
    from .outcome import Outcome

Matvec = Callable[[Tensor], Tensor]


class BlockRanks:
    """Which blocks are this rank's: the largest first, each to the rank that has the fewest parameters so far.

    Args:
        group: the ranks that share the blocks. All hold the same parameters and data.
        sizes: of the blocks.

    Attributes:
        owners: the rank of each block.
    """

    def __init__(self, group: dist.ProcessGroup, sizes: Sequence[int]):
        self.ranks, self.sizes = ProcessGroup(group), list(sizes)
        loads = [0] * self.ranks.size
        self.owners = [0] * len(self.sizes)
        for block in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            self.owners[block] = loads.index(min(loads))
            loads[self.owners[block]] += sizes[block]
        self.own = [block for block, owner in enumerate(self.owners) if owner == self.ranks.rank]

    def take(self, v: Tensor) -> Tensor:
        """Vector [P] -> its part on this rank's blocks."""
        pieces = v.split(self.sizes)
        return torch.cat([pieces[block] for block in self.own])

    def spread(self, part: Tensor) -> Tensor:
        """A part on this rank's blocks -> vector [P], zero elsewhere."""
        whole = part.new_zeros(sum(self.sizes))
        pieces = whole.split(self.sizes)
        for block, piece in zip(self.own, part.split([self.sizes[block] for block in self.own]), strict=True):
            pieces[block].copy_(piece)
        return whole

    def gathered(self, part: Tensor) -> Tensor:
        """The vector [P] of all ranks' parts: every entry is one rank's number and zeros."""
        return self.ranks.sum([self.spread(part)], "the sum over blocks")[0]

    def conjugate_gradient(
        self,
        matvec: Matvec,
        b: Tensor,
        x0: Tensor | None,
        *,
        preconditioner: Matvec | None,
        tolerance: Sequence[float],
        second: tuple[Matvec, Tensor] | None,
        **options: Any,
    ) -> CGResult:
        """Conjugate gradients on this rank's blocks, and the result on all, as `solve.conjugate_gradient` gives it.

        Args:
            matvec: v [P] -> A v [P], block-diagonal.
            b: right-hand side [P].
            x0: start [P], or none.
            preconditioner: block-diagonal, or none.
            tolerance: one per block.
            second: the second model, or none.
            **options: of `solve.conjugate_gradient`; its block sizes are those of this object.
        """

        def own(apply: Matvec) -> Matvec:
            return lambda part: self.take(apply(self.spread(part)))

        check_same_data(self.ranks, b)
        found = None
        options["block_sizes"] = [self.sizes[block] for block in self.own]
        if self.own:
            found = conjugate_gradient(
                own(matvec),
                self.take(b),
                None if x0 is None else self.take(x0),
                preconditioner=None if preconditioner is None else own(preconditioner),
                tolerance=[tolerance[block] for block in self.own],
                second=None if second is None else (own(second[0]), self.take(second[1])),
                **options,
            )
        return self._merged(found, b)

    def _merged(self, found: CGResult | None, like: Tensor) -> CGResult:
        """One result from all ranks'; a block that stopped earlier stands at its last iterate."""
        mine = None if found is None else (found.indices, found.values, found.iterations, found.status, found.products)
        ranks = self.ranks.gather(mine)
        there = [each for each in ranks if each is not None]
        last = max(each[0][-1] for each in there)
        indices = sorted({index for each in there for index in each[0][:-1]} | {last})
        places = [(owner, self.owners[:block].count(owner)) for block, owner in enumerate(self.owners)]
        nothing = like.new_zeros(0, dtype=torch.promote_types(like.dtype, torch.float32))
        iterates, values = [], []
        for index in indices:
            iterate = nothing if found is None else found.iterates[_at(found.indices, index)]
            iterates.append(self.gathered(iterate.to(like.device)).to(iterate.device))
            rows: list[Any] = [None if each is None else each[1][_at(each[0], index)] for each in ranks]
            values.append(tuple(rows[owner][place] for owner, place in places))
        return CGResult(
            solution=self.gathered(nothing if found is None else found.solution),
            iterates=iterates,
            indices=indices,
            values=values,
            iterations=tuple(ranks[owner][2][place] for owner, place in places),
            status=tuple(ranks[owner][3][place] for owner, place in places),
            products=max(each[4] for each in there),
        )


def agreed(outcome: "Outcome", group: dist.ProcessGroup, like: Tensor) -> "Outcome":
    """The first rank's outcome, on every rank, so that rounding cannot part them.

    Args:
        outcome: this rank's.
        group: the ranks.
        like: a vector [P].
    """
    ranks = ProcessGroup(group)
    first, moves = ranks.gather((dataclasses.replace(outcome, vector=None), outcome.vector is not None))[0]
    if not moves:
        return first
    vector = torch.zeros_like(like) if outcome.vector is None else outcome.vector
    return dataclasses.replace(first, vector=ranks.share(vector))


def _at(known: Sequence[int], index: int) -> int:
    """The position of an iteration among those known, or of the last."""
    return min(bisect.bisect_left(known, index), len(known) - 1)
