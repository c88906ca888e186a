"""The residuals of a chunk at parameters other than those at which it is linearised."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ...objective import Chunk, FreeForm, LossOfOutputs, Objective
from ..loss import has_constant_root
from .loss_root import flattened, root_of_pass

ROUNDING = 64
"""Roots that differ by so many units of rounding are the same."""


def is_squared_error(program: Any) -> bool:
    """Whether the loss is a squared error of the outputs, so that residuals of several parameters may be compared."""
    return isinstance(program, LossOfOutputs) and has_constant_root(program.loss)


def residual_of_pass(
    objective: Objective, chunk: Chunk, index: int, at: Mapping[str, Tensor], dtype: torch.dtype
) -> Tensor:
    """The residuals of a chunk as `ChunkRows.residual` orders and scales them [R].

    Args:
        objective: whose loss is a squared error.
        chunk: the data.
        index: its number.
        at: parameters by name in place of the model's own.
        dtype: of the result.

    Returns:
        [R]; not numbers, all of them, where one is not.
    """
    point = {name: p.detach() for name, p in objective.model.named_parameters()} | dict(at)
    with torch.enable_grad(), objective.random_numbers(index):
        loss, tree = objective.forward_pass(chunk, point, objective.buffers(), between=_leaves)
    found = _of_pass(objective, chunk, loss, tree)[0]
    if found is None:  # not finite; how many there are, ranks must agree in
        count = sum(leaf.numel() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.requires_grad)
        found = loss.new_full((count,), math.nan)
    return found.to(dtype) * math.sqrt(objective.weights[index])


def residual_of_free_form(
    objective: Objective, scale: Tensor, at: Mapping[str, Tensor], dtype: torch.dtype
) -> Tensor | None:
    """The residuals of an objective made by `from_forward`, where the diagonal of S is the same as elsewhere.

    Args:
        objective: of one chunk.
        scale: the diagonal of S elsewhere [R].
        at: parameters by name in place of the model's own.
        dtype: of the result.

    Returns:
        [R]; None where the diagonal is another, or there is none.
    """
    (chunk,) = objective.chunks
    own = {name: p.detach().requires_grad_() for name, p in at.items()}
    point = {name: p.detach() for name, p in objective.model.named_parameters()} | own
    with torch.enable_grad(), objective.random_numbers(0):
        loss, tree = objective.forward_pass(chunk, point, objective.buffers())
    try:
        found, diagonal = _of_pass(objective, chunk, loss, tree)
    except ValueError:  # it is not convex there
        return None
    there = diagonal()
    if found is None or there.shape != scale.shape:
        return None
    rounding = ROUNDING * torch.finfo(scale.dtype).eps * scale.abs().max() if scale.numel() else 0.0
    return found.to(dtype) if bool(((there - scale).abs() <= rounding).all()) else None


def _of_pass(objective: Objective, chunk: Chunk, loss: Tensor, tree: Any) -> tuple[Tensor | None, Callable[[], Tensor]]:
    """The residuals of a pass, without the chunk's weight, and what gives S 1 [R]."""
    outputs = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not outputs:
        return loss.new_zeros(0), lambda: loss.new_zeros(0)
    is_free = isinstance(objective.program, FreeForm)  # whose root takes derivatives of the loss
    slopes = torch.autograd.grad(loss, outputs, retain_graph=is_free, materialize_grads=True)
    root = root_of_pass(objective.program, loss, outputs, tree, chunk.targets)
    has_examples = all(x.dim() > 0 and x.shape[0] == chunk.counted for x in outputs)
    found = root.residual(slopes)

    def diagonal() -> Tensor:
        return flattened(root.product([torch.ones_like(x) for x in outputs]), has_examples)

    return None if found is None else flattened(found, has_examples), diagonal


def _leaves(outputs: Any) -> Any:
    """The outputs as leaves of a graph of their own."""
    return tree_map(
        lambda x: x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x, outputs
    )
