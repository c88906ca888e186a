"""How the product of each block is computed: the choice, by what it costs and the memory it needs.

The product of a block with the Gauss-Newton matrix is pull(H_L push(v)), where push starts at the block's parameters
and pull ends there. If everything passes through one tensor z [rows, ...] whose rows do not influence each other from
there on, the rest of the network is for this block the matrix J' H_L J of each row, J being the derivative of the
outputs in z: stored as J itself ("jacobian", set up by one backward pass for each output) or multiplied out
("bottleneck", one tangent pass for each entry of z).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from ..tracing import LinearGraph, layout
from .cost import PER_BYTE, per_call
from .cuts import Cut, Outputs
from .maps import Maps
from .rows import rows_stay_apart

LARGEST_NARROW = 512
"""Entries per row up to which a bottleneck is multiplied out; beyond it the matrices [rows, d, d] cost too much."""


@dataclass(frozen=True)
class Route:
    """How one block's product is computed.

    Attributes:
        method: one of `over_blocks.METHODS`.
        cut: where the rest of the network is replaced by a matrix per row; None with "pruned".
    """

    method: str
    cut: Cut | None = None


@dataclass(frozen=True)
class _Choice:
    routes: list[Route]
    cost: float


class Planner:
    """Chooses a route for each block.

    Args:
        linear: the traced graph.
        blocks: of each block its parameters, by position.
    """

    def __init__(self, linear: LinearGraph, blocks: Sequence[Sequence[int]]):
        self.maps = Maps(linear)
        self.vectors = [[linear.vectors[i] for i in block] for block in blocks]
        self.products = [[linear.product[i] for i in block] for block in blocks]
        self._pruned = [self.maps.cost(v, p) for v, p in zip(self.vectors, self.products, strict=True)]
        self._cuts: list[list[Cut]] = [[] for _ in blocks]
        self._apart: dict[tuple[fx.Node, fx.Node], bool] = {}
        if len(linear.tangents) == 1:
            outputs = Outputs(linear.tangents[0], linear.times[0])
            if all(
                self.maps.moves(x) and layout(x) and layout(x)[0] and _has_memory(x)
                for x in (outputs.tangent, outputs.times)
            ):
                self._cuts = [self._cuts_of(block, outputs) for block in range(len(blocks))]
        self._call = per_call(layout(linear.vectors[0])[3])
        self._costs: dict[tuple[int, Cut], float] = {}
        self._refused: set[Cut] = set()

    def choose(self, expected: int, memory: float, samples: int | None, sound: Callable[[Cut], bool]) -> list[Route]:
        """A route for each block.

        Args:
            expected: how many products share what is set up.
            memory: bytes that may be kept for them.
            samples: columns of the sampled estimate, or None for the exact product.
            sound: whether the two nodes of a cut belong together; asked of what is chosen.
        """
        while True:
            routes = min(self._choices(expected, memory, samples), key=lambda choice: choice.cost).routes
            unsound = {route.cut for route in routes if route.cut and not sound(route.cut)}
            if not unsound:
                return routes
            self._refused |= unsound

    def _choices(self, expected: int, memory: float, samples: int | None) -> list[_Choice]:
        if samples is not None:
            return [self._row_factors("sampled", samples, 1, memory, {})]
        narrow = {cut for cuts in self._cuts for cut in cuts if cut.width <= LARGEST_NARROW}
        narrow = {cut for cut in narrow if cut not in self._refused and self._weighs_rows(cut)}
        found = []
        for cut in [None, *sorted(narrow, key=lambda cut: cut.tangent.name)]:
            fixed, cost, left = self._behind(cut, expected, memory) if cut else ({}, 0.0, memory)
            for method in ("pruned", "jacobian"):
                choice = self._row_factors(method, None if method == "jacobian" else 0, expected, left, fixed)
                found.append(_Choice(choice.routes, choice.cost + cost))
        return found

    def _behind(self, cut: Cut, expected: int, memory: float) -> tuple[dict[int, Route], float, float]:
        """The blocks before a bottleneck whose products get cheaper by it, what setting it up costs, memory left."""
        rows, outputs = cut.outputs.rows, cut.outputs.width
        needed = 4.0 * rows * (cut.width**2 + cut.width * outputs)
        if needed > memory:
            return {}, 0.0, memory
        matrix = 2 * self._call + (2 + PER_BYTE * 4) * rows * cut.width**2
        fixed = {}
        for block, cuts in enumerate(self._cuts):
            if cut in cuts and self._outside(block, cut) + matrix < self._pruned[block]:
                fixed[block] = Route("bottleneck", cut)
        push = self.maps.cost([cut.tangent], [cut.outputs.times])
        multiplied = 2.0 * rows * cut.width**2 * outputs
        saved = sum(self._outside(block, cut) + matrix for block in fixed) * expected
        return fixed, cut.width * push + multiplied + saved, memory - needed

    def _row_factors(
        self, method: str, columns: int | None, expected: int, memory: float, fixed: dict[int, Route]
    ) -> _Choice:
        """Every block that is not fixed by itself, or by stored columns for each row where that is cheaper."""
        routes, total, chosen, pulled = [], 0.0, 0, set()
        for block, pruned in enumerate(self._pruned):
            if block in fixed:
                routes.append(fixed[block])
                continue
            route, cost, kept = Route("pruned"), pruned, 0.0
            for cut in [] if columns == 0 else self._cuts[block]:
                stored = 4.0 * cut.outputs.rows * cut.width * (columns or cut.outputs.width)
                each = self._outside(block, cut) + 4 * self._call + (1 + 2 * PER_BYTE) * stored  # read twice
                if cut not in self._refused and stored <= memory and each < cost:
                    route, cost, kept = Route(method, cut), each, stored
            if route.cut is not None:
                chosen = columns or route.cut.outputs.width
                pulled.add((route.cut.cotangent, route.cut.outputs.times))
            memory -= kept
            total += cost * expected
            routes.append(route)
        if pulled:
            ends, starts = zip(*pulled, strict=True)
            total += chosen * self.maps.cost(starts[:1], ends)
        return _Choice(routes, total)

    def _outside(self, block: int, cut: Cut) -> float:
        """What a block's product costs without what lies behind the cut."""
        if (block, cut) not in self._costs:
            push = self.maps.cost(self.vectors[block], [cut.tangent])
            self._costs[block, cut] = push + self.maps.cost([cut.cotangent], self.products[block])
        return self._costs[block, cut]

    def _cuts_of(self, block: int, outputs: Outputs) -> list[Cut]:
        """Places where a block's product may be cut, of each narrowing width the first and the last."""

        def with_rows(nodes: list[fx.Node]) -> list[fx.Node]:
            return [node for node in nodes if layout(node)[0][:1] == (outputs.rows,) and _has_memory(node)]

        pushed = with_rows(self.maps.narrows(self.vectors[block], [outputs.tangent]))
        pushed = [z for z in pushed if self._stay_apart(z, outputs.tangent)]
        pulled = with_rows(self.maps.narrows([outputs.times], self.products[block]))
        pulled = [d for d in pulled if self._stay_apart(outputs.times, d)]
        found, narrowest = [], math.inf
        for shape, same in itertools.groupby(pushed, key=lambda z: layout(z)[0]):
            run, width = list(same), math.prod(shape[1:])
            if width < narrowest:
                narrowest = width
                for tangent in dict.fromkeys((run[0], run[-1])):
                    others = [d for d in reversed(pulled) if layout(d)[:2] == layout(tangent)[:2]]
                    found += [Cut(tangent, other, outputs) for other in others]
        return found

    def _stay_apart(self, start: fx.Node, end: fx.Node) -> bool:
        if (start, end) not in self._apart:
            self._apart[start, end] = rows_stay_apart(self.maps.between([start], [end]), start, end)
        return self._apart[start, end]

    def _weighs_rows(self, cut: Cut) -> bool:
        """Whether H_L, too, is a matrix of its own for each row; a loss may couple them."""
        return self._stay_apart(cut.outputs.tangent, cut.outputs.times)


def _has_memory(node: fx.Node) -> bool:
    """Whether every entry has memory of its own, which expanded tensors do not."""
    shape, _, strides, _ = layout(node)
    return strides is not None and all(stride > 0 for size, stride in zip(shape, strides, strict=True) if size > 1)
