"""Squares of the gradients of single examples, summed."""

import contextlib
import warnings
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ...objective import Chunk, Objective, available, cut, is_exhaustion
from ...parameters import ParameterSpace
from .dense_layers import dense_squares

COPIES = 4
"""Copies of an example's gradient that are alive at once: the gradient, its flat form, its square, and one to spare."""

MOST_ROWS, MOST_BYTES = 128, 2**28
"""Examples, and memory, from which larger pieces gain no more speed: on a CPU fresh memory costs more than it saves."""

_refused: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
"""Models that `torch.func.vmap` has refused."""

_warned = False


def squared_gradients(
    objective: Objective,
    space: ParameterSpace,
    chunk: Chunk,
    weights: Tensor,
    shares: Tensor,
    index: int,
    piece: int | None,
) -> Tensor:
    """Sum over a chunk's examples of weight times squared gradient [P].

    Linear layers with inputs [rows, columns] take one gradient of the whole chunk (`dense_squares`). The gradients in
    other parameters come, for a piece of the data, from a pass by `torch.func.vmap`; what vmap refuses (control flow
    that depends on data, most recurrent layers) goes example by example. Examples of weight zero are left out there.

    Args:
        objective: of the chunk; each example is the objective's program on a batch of one.
        space: the parameters.
        chunk: the data.
        weights: of the examples [rows].
        shares: factor on each example's loss in the chunk's loss [rows]; positive where the weight is.
        index: the chunk's number, for its random numbers.
        piece: examples of one pass. Default: see `rows_at_once`.

    Raises:
        ValueError: batch norm that has no running statistics.
    """
    kept = weights.nonzero().flatten()
    with running_statistics(objective.model):
        if not len(kept):
            return torch.zeros(space.size, dtype=space.dtype, device=space.device)
        factors = torch.where(weights > 0, weights / shares.square(), 0)
        squares = dense_squares(objective, space, chunk, factors, index)
        names = [name for name in space.names if name not in squares]
        sizes = dict(zip(space.names, space.sizes, strict=True))
        squares |= {name: torch.zeros(sizes[name], dtype=space.dtype, device=space.device) for name in names}
        rows = rows_at_once(objective, space, sum(sizes[name] for name in names)) if piece is None else piece
        with torch.enable_grad(), objective.random_numbers(index):
            for some in kept.split(rows) if names else ():
                scale = weights[some].to(space.device, space.dtype)
                gradients = _example_gradients(objective, names, _rows(chunk, some))
                for name, gradient in zip(names, gradients, strict=True):
                    squares[name] += scale @ gradient.to(space.dtype).reshape(len(some), -1).square()
    return space.flatten([squares[name] for name in space.names])


def rows_at_once(objective: Objective, space: ParameterSpace, size: int) -> int:
    """How many examples' gradients in so many parameters are held at once.

    As many as fit into a quarter of the free memory, the objective's `memory_limit` and 256 MiB, and at most 128.
    """
    limit = min(available(space.device) // 4, MOST_BYTES)
    if objective.memory_limit is not None:
        limit = min(limit, objective.memory_limit)
    each = COPIES * size * torch.finfo(space.dtype).bits // 8
    return max(1, min(limit // max(each, 1), MOST_ROWS))


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


def _example_gradients(objective: Objective, names: list[str], chunk: Chunk) -> list[Tensor]:
    """Gradients of the single examples in the named parameters, each as [rows, ...]."""
    constants = {name: p.detach() for name, p in objective.model.named_parameters()}
    if objective.model in _refused:
        return _one_by_one(objective, names, chunk, constants)
    try:
        return _at_once(objective, names, chunk, constants)
    except Exception as error:  # whatever a transform may raise: the loop tells whether the program itself is wrong
        if is_exhaustion(error):
            raise
        found = _one_by_one(objective, names, chunk, constants)
        _refused.add(objective.model)
        _warn(objective.model, error)
        return found


def _warn(model: nn.Module, error: Exception) -> None:
    global _warned
    if not _warned:
        _warned = True
        reason = str(error).strip().split("\n")[0]
        warnings.warn(
            f"{type(model).__name__}'s gradients are computed example by example, which is slow, since "
            f"torch.func.vmap refuses the model or its loss: {reason} Preconditioners 'ggn_diagonal' and 'nystrom' do "
            "without such gradients",
            stacklevel=2,
        )


def _at_once(objective, names, chunk, constants) -> list[Tensor]:
    leaves, form = tree_flatten((chunk.inputs, chunk.targets))
    batched = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim()]

    def loss_of(point: dict[str, Tensor], *rows: Tensor) -> Tensor:
        filled = list(leaves)
        for i, row in zip(batched, rows, strict=True):
            filled[i] = row.unsqueeze(0)
        inputs, targets = tree_unflatten(filled, form)
        return objective.forward_pass(Chunk(inputs, targets, 1), constants | point, objective.buffers())[0]

    each = vmap(grad(loss_of), in_dims=(None, *[0] * len(batched)), randomness="different")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap's own loop over an operator
        gradients = each({name: constants[name] for name in names}, *[leaves[i] for i in batched])
    return [gradients[name].detach() for name in names]


def _one_by_one(objective, names, chunk, constants) -> list[Tensor]:
    found = []
    for row in range(chunk.rows):
        point = {name: constants[name].detach().requires_grad_() for name in names}
        loss, _ = objective.forward_pass(cut(chunk, row, row + 1), constants | point, objective.buffers())
        gradients = [torch.zeros_like(leaf) for leaf in point.values()]
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, list(point.values()), materialize_grads=True)
        found.append(gradients)
    return [torch.stack(each) for each in zip(*found, strict=True)]
