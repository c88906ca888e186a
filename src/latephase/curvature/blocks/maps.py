"""Linear maps between places of a traced graph: the nodes between them, and a function that computes them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..tracing import LinearGraph, Values, aten, descendants, layout, reuse_memory
from .cost import cost, used_results


class CannotCut(RuntimeError):
    """A map needs a value that the trace does not hand over."""


@dataclass(frozen=True)
class LinearMap:
    """A linear function of some nodes' values, all else that depends on the vectors being zero.

    Attributes:
        function: residuals `of`, values of the starts -> values of the ends.
        of: which residuals it takes, by index.
    """

    function: Callable[..., Any]
    of: list[int]

    def __call__(self, residuals: Values, *starts: Tensor) -> list[Tensor]:
        """The ends' values.

        Args:
            residuals: of the trace's pass.
            *starts: one tensor for each start.
        """
        return self.function(*(residuals[i] for i in self.of), *starts)


class Maps:
    """The linear maps of a traced graph."""

    def __init__(self, linear: LinearGraph):
        self.linear = linear
        self._order = {node: i for i, node in enumerate(linear.nodes)}
        self._moving = descendants(linear.nodes, linear.vectors)

    def moves(self, node: fx.Node) -> bool:
        """Whether a node depends on the vectors."""
        return node in self._moving

    def between(self, starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> list[fx.Node]:
        """The nodes that the starts influence and the ends are computed from, both included, in order."""
        live = set(starts)
        for node in self.linear.nodes[min(self._order[start] for start in starts) :]:
            if any(argument in live for argument in node.all_input_nodes):
                live.add(node)
        found: set[fx.Node] = set()
        waiting, stopped = [end for end in ends if end in live], set(starts)
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += [] if node in stopped else [x for x in node.all_input_nodes if x in live]
        return sorted(found, key=self._order.__getitem__)

    def cost(self, starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> float:
        """What the map costs, in floating-point operations that take as long."""
        inside = self.between(starts, ends)
        known = set(inside)
        return sum(cost(node, known) for node in inside if node not in set(starts))

    def narrows(self, starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> list[fx.Node]:
        """The single tensors through which everything passes that gets from the starts to the ends, in order."""
        inside = self.between(starts, ends)
        if not set(starts) & set(inside):
            return []
        place = {node: i for i, node in enumerate(inside)}
        last = {node: max((place[user] for user in node.users if user in place), default=0) for node in inside}
        last |= {end: len(inside) for end in ends if end in place}
        first = max(place[start] for start in starts if start in place)
        found, furthest = [], 0
        for i, node in enumerate(inside):
            if i >= first and furthest <= i and layout(node):
                found.append(node)
            furthest = max(furthest, last[node])
        return found

    def map(self, starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> LinearMap:
        """The map from starts to ends as a function; where an end does not depend on a start, it is zero.

        Raises:
            CannotCut: a value is needed that the trace does not hand over.
        """
        inside = [node for node in self.between(starts, ends) if node not in set(starts)]
        needed = {x for node in inside for x in node.all_input_nodes if x not in self._moving}
        if not needed <= self.linear.residuals.keys():
            raise CannotCut("a product by blocks needs a value that the trace does not keep")
        given = sorted(needed, key=self.linear.residuals.__getitem__)
        graph = fx.Graph()
        copies = {node: graph.placeholder(node.name) for node in [*given, *starts]}
        for node, copy in copies.items():
            copy.meta.update(node.meta)

        def copied(node: fx.Node) -> fx.Node:
            if node not in copies:
                copies[node] = _zeros(graph, node)
            return copies[node]

        known = {*inside, *starts}
        for node in inside:
            alive = _alive(node, known, self._moving)
            if alive is None:
                copies[node] = graph.node_copy(node, copied)
                used_results(copies[node], node, known)
            else:
                copies[node] = _expanded(graph, copies[alive], alive, node)
        graph.output([copied(end) for end in ends])
        reuse_memory(graph)
        function = fx.GraphModule(torch.nn.Module(), graph).forward
        return LinearMap(function, [self.linear.residuals[x] for x in given])


def _alive(node: fx.Node, inside: Iterable[fx.Node], moving: Iterable[fx.Node]) -> fx.Node | None:
    """Of a sum with a term that is zero here, the other term."""
    if node.target not in (aten.add.Tensor, aten.sub.Tensor) or len(node.args) != 2:
        return None
    first, second = node.args
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
        return None
    if first in inside and second in moving and second not in inside:
        return first if layout(first)[1:2] == layout(node)[1:2] else None
    added = node.target is aten.add.Tensor and not node.kwargs
    if added and second in inside and first in moving and first not in inside:
        return second if layout(second)[1:2] == layout(node)[1:2] else None
    return None


def _zeros(graph: fx.Graph, node: fx.Node) -> fx.Node:
    shape, dtype, _, device = layout(node)
    return graph.call_function(aten.zeros.default, (list(shape),), {"dtype": dtype, "device": device})


def _expanded(graph: fx.Graph, copy: fx.Node, alive: fx.Node, node: fx.Node) -> fx.Node:
    """A copy of one term of a sum in the sum's shape; contiguous where strides differ, since views may follow."""
    if layout(alive)[0] == layout(node)[0] and layout(alive)[2] == layout(node)[2]:
        return copy
    expanded = graph.call_function(aten.expand.default, (copy, list(layout(node)[0])))
    return graph.call_function(aten.clone.default, (expanded,), {"memory_format": torch.contiguous_format})
