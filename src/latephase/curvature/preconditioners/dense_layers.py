"""Squared gradients of single examples in linear layers, from inputs and slopes of one pass over the whole chunk."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ...objective import Chunk, Objective
from ...parameters import ParameterSpace
from .base import owners
from .followed_squares import followed_squares
from .layer_uses import LayerUses


class _Record:
    """What a layer saw: its inputs [rows, columns], and a tensor of zeros that was added to its outputs.

    The slope of the loss in those zeros is that in the outputs, whatever is done to them afterwards in place.
    """

    def __init__(self, module: nn.Module, own: dict[str, str], rows: int):
        self.module, self.own, self.rows = module, own, rows
        self.uses: LayerUses | None = None
        self.inputs: Tensor | None = None
        self.zeros: Tensor | None = None
        self.calls = 0

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        self.calls += 1
        fits = len(arguments) == 1 and isinstance(arguments[0], Tensor) and arguments[0].dim() == 2
        assert self.uses is not None
        if (
            not self.uses.called(module, arguments, output)
            or self.calls > 1
            or not fits
            or (len(arguments[0]) != self.rows)
            or output._backward_hooks  # which may change the slopes on their way to the weight
        ):
            self.inputs = self.zeros = None
            return output
        self.inputs = arguments[0].detach().clone()
        self.zeros = torch.zeros_like(output, requires_grad=True)
        return output + self.zeros

    def squares(self, key: str, slopes: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum over the rows of factor times squared gradient in weight or bias, from the slopes in the zeros."""
        assert self.inputs is not None
        wide = torch.promote_types(self.inputs.dtype, dtype)
        squares = slopes.to(wide).square() * factors.to(slopes.device, wide).unsqueeze(1)
        return squares.sum(0) if key == "bias" else squares.T @ self.inputs.to(wide).square()


def dense_squares(
    objective: Objective, space: ParameterSpace, chunk: Chunk, factors: Tensor, index: int
) -> dict[str, Tensor]:
    """Sum over the examples of factor times squared gradient, by parameter name, where one pass of the chunk tells it.

    The gradient of example i in a linear layer's weight is the outer product of slope and input, so that the sum of
    squares is a product of matrices of squares (Goodfellow 2015, "Efficient per-example gradient computations";
    Martens' own program does so). That takes one gradient for the whole chunk, and needs a layer that is called once
    with inputs [rows, columns], the rows being the examples, and a parameter that is used nowhere else (`LayerUses`).
    Where derivatives of the network inside the pass use one too, all other parameters are followed through a backward
    pass of the chunk (`followed_squares`), if that can be.

    Args:
        objective: of the chunk, no layer of its model tying examples together.
        space: the parameters.
        chunk: the data.
        factors: on the squared gradient of each example's part of the chunk's loss [rows].
        index: the chunk's number, for its random numbers.
    """
    records = _records(objective.model, space, chunk.rows)
    point = {name: p.detach().requires_grad_(name in space.names) for name, p in objective.model.named_parameters()}
    uses = LayerUses({path: record.module for path, record in records.items()}, point, objective.model)
    with torch.enable_grad(), objective.random_numbers(index):
        loss, outputs = _watched_pass(objective, chunk, point, uses, list(records.values()))
        uses.end([loss])
        seen = [(record, *_told_by_call(record, uses, point)) for record in records.values()]
        any_inside = any(inside for _, _, inside in seen)
        zeros = [record.zeros for record, _, _ in seen if record.zeros is not None]
        slopes = ()
        if zeros and loss.requires_grad:
            slopes = torch.autograd.grad(loss, zeros, materialize_grads=True, retain_graph=any_inside)
    found: dict[str, Tensor] = {}
    whole = {id(zero): slope for zero, slope in zip(zeros, slopes, strict=bool(slopes))}
    for record, told, _ in seen:
        slope = whole.get(id(record.zeros))
        if slope is not None:
            found |= {name: record.squares(key, slope, factors, space.dtype) for key, name in told.items()}
    if any_inside:
        others = [name for name in space.names if name not in found]
        followed = followed_squares(loss, outputs, [point[name] for name in others], factors, space.dtype)
        found |= dict(zip(others, followed or [], strict=followed is not None))
    return found


def _records(model: nn.Module, space: ParameterSpace, rows: int) -> dict[str, _Record]:
    """Of the linear layers that have parameters of their own in the space."""
    names = {id(p): name for p, name in zip(space.parameters, space.names, strict=True)}
    holders = owners(model)
    found = {}
    for path, module in model.named_modules():
        own = {key: names[id(p)] for key, p in module._parameters.items() if id(p) in names}
        single = all(holders[id(p)] == 1 for p in module._parameters.values() if p is not None)
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward and own and single:
            found[path] = _Record(module, own, rows)
    return found


def _watched_pass(
    objective: Objective, chunk: Chunk, point: Mapping[str, Tensor], uses: LayerUses, records: Sequence[_Record]
) -> tuple[Tensor, list[Tensor]]:
    """The loss and the outputs that it is made of, as nodes of their own."""
    kept = []

    def apart(outputs: Any) -> Any:
        kept.append(tree_map(lambda leaf: leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf, outputs))
        return kept[0]

    hooks = []
    for record in records:
        record.uses = uses
        hooks.append(record.module.register_forward_hook(record))
    try:
        with uses:
            loss, _ = objective.forward_pass(chunk, point, objective.buffers(), between=apart)
    finally:
        for hook in hooks:
            hook.remove()
    return loss, [leaf for leaf in tree_leaves(kept[-1]) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _told_by_call(record: _Record, uses: LayerUses, point: Mapping[str, Tensor]) -> tuple[dict[str, str], bool]:
    """The parameters whose gradient the layer's call tells, and whether the graph shows that of another it does not."""
    if uses.obstacle(record.module):
        return {}, False
    own = {key: name for key, name in record.own.items() if key in ("weight", "bias")}
    by_call = {key: name for key, name in own.items() if uses.enters_by_call(record.module, point[name])}
    if record.inputs is None or not uses.is_seen_whole(record.module):
        return {}, len(by_call) < len(own)
    return by_call, len(by_call) < len(own)
