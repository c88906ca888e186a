"""Many cotangents of the outputs pulled back to the parameters at once: one example at a time, or a whole chunk."""

import copy
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from ...objective import Chunk, cut, is_exhaustion
from ..chunk_task import ChunkTask
from ..eager import ForwardPass

Tensors = Sequence[Tensor]

Pull = Callable[[Tensors, range], Tensors]
"""(cotangents [columns, examples, ...] of each output, which examples) -> the pull-backs to each parameter, with
dimensions for the examples, the columns, and the parameter's own."""

_refused: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
"""Models that `torch.func.vmap` has refused."""


def pull_whole(forward: ForwardPass) -> Pull:
    """Through the graph of the whole chunk, which is one example: a backward pass of it for each cotangent."""
    return lambda cotangents, examples: _pulled(forward, cotangents)


def pull_examples(forward: ForwardPass) -> Pull:
    """Example by example: all at once by `torch.func.vmap`, or in a loop where that refuses the model.

    Each example's pass is a batch of one. That examples do not depend on each other is for the caller to check.
    """
    outputs = outputs_alone(forward)

    def pull(cotangents: Tensors, examples: range) -> Tensors:
        own = [each[:, examples.start : examples.stop] for each in cotangents]
        model = forward.objective.model
        if model not in _refused:
            try:
                return _at_once(outputs, own, examples)
            except Exception as error:  # whatever a transform may raise: the loop tells whether the model is wrong
                if is_exhaustion(error):
                    raise
                found = _one_by_one(outputs, own, examples)
                _refused.add(model)
                reason = (str(error) or repr(error)).strip().splitlines()[0]
                warnings.warn(
                    f"rows of {type(model).__name__} are computed example by example, which is slow, since "
                    f"torch.func.vmap refuses the model: {reason}",
                    stacklevel=2,
                )
                return found
        return _one_by_one(outputs, own, examples)

    return pull


def outputs_alone(forward: ForwardPass) -> ForwardPass:
    """The same pass with a loss that computes nothing: examples by themselves need none."""
    objective = copy.copy(forward.objective)
    objective.program = copy.copy(objective.program)
    objective.program.loss = _no_loss
    other = copy.copy(forward)
    other.objective = objective
    return other


def _no_loss(outputs: Any, targets: Any) -> Tensor:
    return torch.zeros(())


def _at_once(forward: ForwardPass, cotangents: Tensors, examples: range) -> Tensors:
    some = cut(forward.chunk, examples.start, examples.stop)
    leaves, form = tree_flatten((some.inputs, some.targets))
    batched = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim()]

    def of_example(rows: Tensors, own: Tensors) -> dict[str, Tensor]:
        filled = list(leaves)
        for i, row in zip(batched, rows, strict=True):
            filled[i] = row.unsqueeze(0)
        one = copy.copy(forward)
        inputs, targets = tree_unflatten(filled, form)
        one.chunk = Chunk(inputs, targets, 1)
        pull = vjp(lambda point: tuple(one.function(point)[1]), point)[1]
        return vmap(lambda u: pull(tuple(x.unsqueeze(0) for x in u))[0])(tuple(own))

    point = forward.named([leaf.detach() for leaf in forward.leaves])
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap's own loop over an operator
        own = [each.movedim(0, 1) for each in cotangents]
        found = vmap(of_example)(tuple(leaves[i] for i in batched), tuple(own))
    return [found[name].detach() for name in forward.space.names]


def _one_by_one(forward: ForwardPass, cotangents: Tensors, examples: range) -> Tensors:
    found = []
    for place, row in enumerate(examples):
        chunk = cut(forward.chunk, row, row + 1)
        one = ForwardPass(ChunkTask(forward.objective, chunk, forward.index, forward.space, forward.buffers_before))
        found.append(_pulled(one, [each[:, place : place + 1] for each in cotangents]))
    return [torch.cat(each) for each in zip(*found, strict=True)]


def _pulled(forward: ForwardPass, cotangents: Tensors) -> list[Tensor]:
    """The pull-backs of cotangents [columns, ...]: [columns, ...] in each parameter's shape."""
    columns = len(cotangents[0])
    try:
        found = torch.autograd.grad(
            forward.outputs,
            forward.leaves,
            list(cotangents),
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        zeros = (leaf.new_zeros(columns, *leaf.shape) for leaf in forward.leaves)
        return [zero if each is None else each for each, zero in zip(found, zeros, strict=True)]
    except Exception as error:  # whatever batching may raise, as above
        if is_exhaustion(error):
            raise
    each = [forward.pull([u[column] for u in cotangents]) for column in range(columns)]
    dense = [[g.to_dense() if g.is_sparse else g for g in gradients] for gradients in each]
    return [torch.stack(gradients) for gradients in zip(*dense, strict=True)]
