"""Which operations of a graph of autograd read a tensor: backward passes inside a pass are seen nowhere else."""

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import Node

Readers = dict[Node, list[Node]]
"""Of each node the nodes that read what it gives, once for each use."""


def readers_of(ends: Iterable[Tensor], until: Iterable[Tensor] = ()) -> Readers:
    """The readers of each node from which a gradient flows.

    Args:
        ends: tensors whose graph is read.
        until: tensors in it, behind which nothing is read.
    """
    stopped = {x.grad_fn for x in until}
    waiting = [x.grad_fn for x in ends if x.grad_fn is not None]
    known, readers = set(waiting), Readers()
    while waiting:
        node = waiting.pop()
        if node in stopped:
            continue
        for read, _ in node.next_functions:
            if read is not None:
                readers.setdefault(read, []).append(node)
                if read not in known:
                    known.add(read)
                    waiting.append(read)
    return readers


def leaves_of(readers: Readers) -> dict[int, Node]:
    """The nodes of the leaves that are read, by the id of the leaf."""
    return {id(leaf): node for node in readers if (leaf := getattr(node, "variable", None)) is not None}


def is_read_through(readers: Readers, start: Node, through: Node | None) -> bool:
    """Whether all that reads a node reads it through one other node."""
    while start is not through:
        own = readers.get(start, [])
        if len(own) != 1:
            return False
        start = own[0]
    return True
