"""Squares of the gradients of single examples, summed."""

import contextlib
import warnings
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ...chunks import Chunk, cut
from ...memory import available
from ...objective import Objective
from ...parameters import ParameterSpace

COPIES = 4
"""Copies of an example's gradient that are alive at once: the gradient, its flat form, its square, and one to spare."""

MOST_ROWS = 256
"""Examples from which larger pieces gain no more speed."""

_refused: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
"""Models that `torch.func.vmap` has refused."""

_warned = False


class Squares(NamedTuple):
    """Weighted sum of squared gradients [P], and the sum of the examples' losses (scalar)."""

    squares: Tensor
    losses: Tensor


def squared_gradients(
    objective: Objective, space: ParameterSpace, chunk: Chunk, weights: Tensor, index: int, piece: int | None
) -> Squares:
    """Sum over a chunk's examples of weight times squared gradient.

    The gradients of a piece of the data come from one pass by `torch.func.vmap`; what vmap refuses (control flow that
    depends on data, most recurrent layers) goes example by example. Examples of weight zero are left out.

    Args:
        objective: of the chunk; each example is the objective's program on a batch of one.
        space: the parameters.
        chunk: the data.
        weights: of the examples [rows].
        index: the chunk's number, for its random numbers.
        piece: examples of one pass. Default: as many as fit into a quarter of the free memory, at most 256.

    Raises:
        ValueError: batch norm that has no running statistics.
    """
    rows = rows_at_once(objective, space) if piece is None else piece
    kept = weights.nonzero().flatten()
    constants = {name: p.detach() for name, p in objective.model.named_parameters()}
    squares = torch.zeros(space.size, dtype=space.dtype, device=space.device)
    losses = torch.zeros((), dtype=space.dtype, device=space.device)
    with running_statistics(objective.model), torch.enable_grad(), objective.random_numbers(index):
        for some in kept.split(rows) if len(kept) else ():
            own = _rows(chunk, some)
            gradients, values = _example_gradients(objective, space, own, constants)
            start, scale = 0, weights[some].to(space.device, space.dtype)
            for gradient, size in zip(gradients, space.sizes, strict=True):
                wide = gradient.to(space.dtype).reshape(own.rows, size).square()
                squares[start : start + size] += scale @ wide
                start += size
            losses += values.sum().to(space.dtype)
    return Squares(squares, losses)


def rows_at_once(objective: Objective, space: ParameterSpace) -> int:
    """How many examples' gradients fit into a quarter of the free memory, or into the objective's `memory_limit`."""
    limit = available(space.device) // 4
    if objective.memory_limit is not None:
        limit = min(limit, objective.memory_limit)
    each = COPIES * space.size * torch.finfo(space.dtype).bits // 8
    return max(1, min(limit // each, MOST_ROWS))


@contextlib.contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Within, batch norm runs on its running statistics, since its batch makes one function of all examples.

    Raises:
        ValueError: a layer keeps no such statistics.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    for name, module in layers:
        if module.running_mean is None:
            raise ValueError(
                f"batch norm {name!r} has no running statistics, so that an example has no gradient of its own; use "
                "the preconditioner 'ggn_diagonal' or 'nystrom'"
            )
    training = [module for _, module in layers if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _rows(chunk: Chunk, rows: Tensor) -> Chunk:
    """Some rows of a chunk; views where they are consecutive."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        return cut(chunk, first, last + 1)
    inputs, targets = tree_map(
        lambda leaf: leaf[rows.to(leaf.device)] if isinstance(leaf, Tensor) and leaf.dim() else leaf,
        (chunk.inputs, chunk.targets),
    )
    return Chunk(inputs, targets, len(rows))


def _example_gradients(
    objective: Objective, space: ParameterSpace, chunk: Chunk, constants: dict[str, Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the single examples, each parameter's as [rows, ...], and their losses [rows]."""
    if objective.model not in _refused:
        try:
            return _at_once(objective, space, chunk, constants)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a transform may raise: the loop tells whether the program itself is wrong
            found = _one_by_one(objective, space, chunk, constants)
            _refused.add(objective.model)
            _warn(objective.model, error)
            return found
    return _one_by_one(objective, space, chunk, constants)


def _warn(model: nn.Module, error: Exception) -> None:
    global _warned
    if not _warned:
        _warned = True
        reason = str(error).strip().split("\n")[0]
        warnings.warn(
            f"the gradients of {type(model).__name__}'s single examples are computed one by one, which is slow, since "
            f"torch.func.vmap refuses the model or its loss: {reason} Preconditioners 'ggn_diagonal' and 'nystrom' do "
            "without such gradients",
            stacklevel=2,
        )


def _at_once(objective, space, chunk, constants) -> tuple[list[Tensor], Tensor]:
    leaves, form = tree_flatten((chunk.inputs, chunk.targets))
    batched = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim()]

    def loss_of(point: dict[str, Tensor], *rows: Tensor) -> Tensor:
        filled = list(leaves)
        for i, row in zip(batched, rows, strict=True):
            filled[i] = row.unsqueeze(0)
        inputs, targets = tree_unflatten(filled, form)
        return objective.forward_pass(Chunk(inputs, targets, 1), constants | point, objective.buffers())[0]

    each = vmap(grad_and_value(loss_of), in_dims=(None, *[0] * len(batched)), randomness="different")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap's own loop over an operator
        gradients, losses = each({name: constants[name] for name in space.names}, *[leaves[i] for i in batched])
    return [gradients[name].detach() for name in space.names], losses.detach()


def _one_by_one(objective, space, chunk, constants) -> tuple[list[Tensor], Tensor]:
    found, losses = [], []
    for row in range(chunk.rows):
        point = {name: constants[name].detach().requires_grad_() for name in space.names}
        loss, _ = objective.forward_pass(cut(chunk, row, row + 1), constants | point, objective.buffers())
        gradients = [torch.zeros_like(leaf) for leaf in point.values()]
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, list(point.values()), materialize_grads=True)
        found.append([gradient.to_dense() if gradient.is_sparse else gradient for gradient in gradients])
        losses.append(loss.detach())
    return [torch.stack(each) for each in zip(*found, strict=True)], torch.stack(losses)
