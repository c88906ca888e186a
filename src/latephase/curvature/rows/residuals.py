"""The residuals of a chunk at parameters other than those at which it is linearised."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ...objective import Chunk, LossOfOutputs, Objective
from ..loss import has_constant_root, root_of_any, unrooted


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

    Raises:
        ValueError: the loss is none, or has several outputs.
    """
    point = {name: p.detach() for name, p in objective.model.named_parameters()} | dict(at)
    with torch.enable_grad(), objective.random_numbers(index):
        loss, tree = objective.forward_pass(chunk, point, objective.buffers(), between=_leaves)
        outputs = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.requires_grad]
        slopes = torch.autograd.grad(loss, outputs, materialize_grads=True)
    loss_function = objective.program.loss
    root = root_of_any(loss_function, outputs, chunk.targets, isinstance(tree, Tensor))
    found = None if root is None else unrooted(loss_function, root, outputs, chunk.targets, slopes)
    if found is None or len(found) != 1:
        raise ValueError("residuals at other parameters are those of a squared error of one output")
    return found[0].detach().reshape(-1).to(dtype) * math.sqrt(objective.weights[index])


def _leaves(outputs: Any) -> Any:
    """The outputs as leaves of a graph of their own."""
    return tree_map(
        lambda x: x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x, outputs
    )
