"""What an operation of a traced graph is expected to cost."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from ..tracing import layout

PER_BYTE = 8.0
"""Floating-point operations that take as long as moving one byte: between 5 and 15 on CPUs and GPUs of today."""

PER_CALL = {"cpu": 2e5, "cuda": 1e8}
"""Floating-point operations that take as long as one call of an operation, some 5 microseconds on every device."""


def per_call(device: torch.device) -> float:
    """`PER_CALL` of a device."""
    return PER_CALL.get(device.type, PER_CALL["cuda"])


def cost(node: fx.Node, inside: Iterable[fx.Node]) -> float:
    """Floating-point operations that take as long as a node does.

    Args:
        node: of a traced graph.
        inside: the nodes that are computed; of several results of an operation those that are not are left out.
    """
    if node.op != "call_function" or node.target is operator.getitem or _is_view(node):
        return 0.0
    call = (
        per_call(layout(node.all_input_nodes[0])[3])
        if node.all_input_nodes and layout(node.all_input_nodes[0])
        else 0.0
    )
    wanted = _wanted(node, inside)
    moved = bytes_of(node) + sum(bytes_of(argument) for argument in node.all_input_nodes)
    moved += sum(bytes_of(user) for user in node.users if user.target is operator.getitem and user in inside)
    return call + PER_BYTE * moved + _flops(node, wanted)


def bytes_of(node: fx.Node) -> float:
    """Size of a node's value."""
    found = layout(node)
    return math.prod(found[0]) * found[1].itemsize if found else 0.0


def used_results(copy: fx.Node, node: fx.Node, inside: Iterable[fx.Node]) -> None:
    """Spare a copied operation those of its several results that nobody asks for, where it can be told so."""
    wanted, position = _wanted(node, inside), _mask_position(node)
    if wanted is not None and position is not None:
        copy.args = (*copy.args[:position], wanted, *copy.args[position + 1 :])


def _wanted(node: fx.Node, inside: Iterable[fx.Node]) -> list[bool] | None:
    """Which of an operation's results are computed; None where it cannot be told."""
    position = _mask_position(node)
    if position is None:
        return None
    used: list[Any] = [user.args[1] for user in node.users if user.target is operator.getitem and user in inside]
    mask: Any = node.args[position]
    return [bool(asked) and i in used for i, asked in enumerate(mask)]


def _mask_position(node: fx.Node) -> int | None:
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    names = [argument.name for argument in node.target._schema.arguments]
    position = names.index("output_mask") if "output_mask" in names else len(node.args)
    return position if position < len(node.args) else None


def _is_view(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    results = node.target._schema.returns
    return any(result.alias_info is not None and not result.alias_info.is_write for result in results)


def _flops(node: fx.Node, wanted: list[bool] | None) -> float:
    """Multiplications and additions of matrix products and convolutions; all else is bound by memory."""
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    if packet not in flop_registry:
        return 0.0
    args = list(node.args)
    if wanted is not None:
        position = _mask_position(node)
        assert position is not None
        args[position] = wanted
    shapes = tree_map(lambda x: torch.Size(layout(x)[0]) if isinstance(x, fx.Node) and layout(x) else x, args)
    results = torch.Size(layout(node)[0]) if layout(node) else shapes[1:3]  # the input's and the weight's gradient
    if any(isinstance(leaf, fx.Node) for leaf in tree_leaves(shapes)):
        return 0.0
    return float(flop_registry[packet](*shapes, out_val=results))
