"""Cutting a traced computation into stages: what does not depend on the vector, and what does."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .rewrite import is_random, reuse_memory

Values = Sequence[Tensor | None]
"""Residuals: what the stages before the product hand over to it, None for those that were let go."""


@dataclass
class Stages:
    """The stages of a traced chunk, each a function of flat tensors.

    Attributes:
        forward: inputs -> loss, buffers, residuals.
        gradient: residuals `of_gradient` -> gradient.
        product: residuals `of_product`, vectors -> product.
        form: residuals `of_form`, vectors -> (v'Cv,).
        of_gradient: which residuals the stage takes, by index; the others likewise.
        linear: the part that depends on the vectors, from which further stages can be cut.
    """

    forward: Callable[..., Any]
    gradient: Callable[..., Any]
    product: Callable[..., Any]
    form: Callable[..., Any]
    of_gradient: list[int]
    of_product: list[int]
    of_form: list[int]
    linear: "LinearGraph"


@dataclass
class LinearGraph:
    """What a traced chunk computes from the vectors: product = pull(H_L push(vectors)).

    Attributes:
        nodes: all nodes of the graph in order, those that do not depend on the vectors included.
        residuals: by node, the index of its value among the residuals.
        vectors: one node per parameter.
        product: one node per parameter.
        tangents: J v, by output of the model; empty for the Hessian.
        times: H_L J v, likewise.
    """

    nodes: list[fx.Node]
    residuals: dict[fx.Node, int]
    vectors: list[fx.Node]
    product: list[fx.Node]
    tangents: list[fx.Node]
    times: list[fx.Node]


def cut(graph: fx.Graph, inputs: int, parameters: int, first: int) -> Stages:
    """Cut a graph without mutations into stages.

    Args:
        graph: its placeholders are the inputs, one vector per parameter, and further inputs; its outputs, flat, loss
            and buffers, gradient, product, form, tangents of the model's outputs, these times H_L.
        inputs: number of inputs.
        parameters: number of parameters.
        first: number of loss and buffers.
    """
    nodes = list(graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    placeholders = [node for node in nodes if node.op == "placeholder"]
    vectors = placeholders[inputs : inputs + parameters]
    given = placeholders[:inputs] + placeholders[inputs + parameters :]
    outputs = list(nodes[-1].args[0])
    values, gradient = outputs[:first], outputs[first : first + parameters]
    product, inner = outputs[first + parameters : first + 2 * parameters], outputs[first + 2 * parameters :]
    form, tangents, times = inner[:1], inner[1 : len(inner) // 2 + 1], inner[len(inner) // 2 + 1 :]
    known = set(nodes) - descendants(nodes, vectors)
    of_product, of_form = (_frontier(ends, known) for ends in (product, form))
    randoms = [node for node in nodes if is_random(node)]
    early = ancestors([*values, *of_product, *of_form, *randoms])
    # Where an operation has several results, all are handed over one by one, never as the tuple that they come in.
    early |= {node for node in nodes if node.target is operator.getitem and node.args[0] in early}
    of_gradient = _frontier(gradient, early | set(given))
    residuals = sorted({*of_product, *of_form, *of_gradient}, key=order.__getitem__)
    index = {node: i for i, node in enumerate(residuals)}
    found = {
        name: sorted(ends, key=order.__getitem__)
        for name, ends in {"gradient": of_gradient, "product": of_product, "form": of_form}.items()
    }

    def stage(starts: Iterable[fx.Node], ends: list[fx.Node]) -> Callable[..., Any]:
        return part_of(nodes, list(starts), ends)

    return Stages(
        forward=part_of(nodes, given, [*values, *residuals], randoms),
        gradient=stage(found["gradient"], gradient),
        product=stage([*found["product"], *vectors], product),
        form=stage([*found["form"], *vectors], form),
        of_gradient=[index[node] for node in found["gradient"]],
        of_product=[index[node] for node in found["product"]],
        of_form=[index[node] for node in found["form"]],
        linear=LinearGraph(nodes, index, vectors, product, tangents, times),
    )


def descendants(nodes: list[fx.Node], starts: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on the starts, themselves included."""
    found = set(starts)
    for node in nodes:
        if any(argument in found for argument in node.all_input_nodes):
            found.add(node)
    return found


def ancestors(ends: Iterable[fx.Node], stop: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """The nodes that the ends are computed from, themselves included, back to where it stops."""
    found: set[fx.Node] = set()
    stopped, waiting = set(stop), list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend([] if node in stopped else node.all_input_nodes)
    return found


def _frontier(ends: Iterable[fx.Node], known: set[fx.Node]) -> set[fx.Node]:
    """The known nodes from which the ends are computed directly."""
    found = ancestors(ends, stop=known)
    return found & known


def part_of(
    nodes: list[fx.Node], starts: list[fx.Node], ends: list[fx.Node], others: Iterable[fx.Node] = ()
) -> Callable[..., Any]:
    """The part of a graph that computes the ends from the starts, and other nodes: draws that later ones depend on."""
    needed = ancestors([*ends, *others], stop=starts)
    graph = fx.Graph()
    copies = {start: graph.placeholder(start.name) for start in starts}
    for node in nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[end] for end in ends])
    reuse_memory(graph)
    return fx.GraphModule(torch.nn.Module(), graph).forward  # not as a module: hooks of all modules are the user's
