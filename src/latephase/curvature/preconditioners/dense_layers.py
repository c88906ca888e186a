"""Squared gradients of single examples in linear layers, from inputs and slopes of one pass over the whole chunk."""

from typing import Any

import torch
from torch import Tensor, nn

from ...objective import Chunk, Objective
from ...parameters import ParameterSpace
from .base import owners
from .layer_uses import LayerUses


class _Record:
    """What a layer saw: its inputs [rows, columns], and a tensor of zeros that was added to its outputs.

    The slope of the loss in those zeros is that in the outputs, whatever is done to them afterwards in place.
    """

    def __init__(self, rows: int):
        self.rows = rows
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
        ):
            self.inputs = self.zeros = None
            return output
        self.inputs = arguments[0].detach().clone()
        self.zeros = torch.zeros_like(output, requires_grad=True)
        return output + self.zeros


def dense_squares(
    objective: Objective, space: ParameterSpace, chunk: Chunk, factors: Tensor, index: int
) -> dict[str, Tensor]:
    """Sum over the examples of factor times squared gradient, by parameter name, for the linear layers that allow it.

    The gradient of example i in the weight is the outer product of slope and input, so that the sum of squares is a
    product of matrices of squares (Goodfellow 2015, "Efficient per-example gradient computations"; Martens' own program
    does so). That takes one gradient for the whole chunk, and needs a layer that is called once with inputs [rows,
    columns], the rows being the examples, and whose parameters are used nowhere else (`LayerUses`).

    Args:
        objective: of the chunk, no layer of its model tying examples together.
        space: the parameters.
        chunk: the data.
        factors: on the squared gradient of each example's part of the chunk's loss [rows].
        index: the chunk's number, for its random numbers.
    """
    model = objective.model
    names = {id(p): name for p, name in zip(space.parameters, space.names, strict=True)}
    holders = owners(model)
    records: dict[str, tuple[nn.Module, _Record, dict[str, str]]] = {}
    for path, module in model.named_modules():
        own = {key: names[id(p)] for key, p in module._parameters.items() if id(p) in names}
        single = all(holders[id(p)] == 1 for p in module._parameters.values() if p is not None)
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward and own and single:
            records[path] = module, _Record(chunk.rows), own
    point = {name: p.detach().requires_grad_(name in space.names) for name, p in model.named_parameters()}
    uses = LayerUses({path: module for path, (module, *_) in records.items()}, point, model)
    hooks = []
    for module, record, _ in records.values():
        record.uses = uses
        hooks.append(module.register_forward_hook(record))
    try:
        with torch.enable_grad(), objective.random_numbers(index):
            with uses:
                loss, _ = objective.forward_pass(chunk, point, objective.buffers())
            zeros = [record.zeros for _, record, _ in records.values() if record.zeros is not None]
            slopes = torch.autograd.grad(loss, zeros, materialize_grads=True) if zeros and loss.requires_grad else ()
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Tensor] = {}
    whole = {id(zero): slope for zero, slope in zip(zeros, slopes, strict=bool(slopes))}
    for module, record, own in records.values():
        if record.inputs is None or id(record.zeros) not in whole or uses.obstacle(module):
            continue
        wide = torch.promote_types(record.inputs.dtype, space.dtype)
        squares = whole[id(record.zeros)].to(wide).square() * factors.to(space.device, wide).unsqueeze(1)
        if "weight" in own:
            found[own["weight"]] = squares.T @ record.inputs.to(wide).square()
        if "bias" in own:
            found[own["bias"]] = squares.sum(0)
    return found
