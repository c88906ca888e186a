"""Products with H_L, the Hessian of the loss in the outputs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

from ...objective import FreeForm, LossOfOutputs, name_of
from .hessians import hessian_product

Tensors = Sequence[Tensor]


def loss_curvature(
    program: LossOfOutputs | FreeForm, targets: Any, loss: Tensor, outputs: Tensors
) -> Callable[[Tensors], Tensors]:
    """U -> H_L u: in closed form where the loss is known (`hessian_product`), by double backward otherwise.

    Args:
        program: what computed the loss.
        targets: of the chunk.
        loss: scalar, with its graph.
        outputs: the tensors that the loss was computed from and that depend on the parameters.

    Raises:
        ValueError: the loss does not depend on the outputs, so that there is no Gauss-Newton matrix.
        RuntimeError: the loss has no second derivative; the products raise it as well.
    """
    if isinstance(program, LossOfOutputs) and outputs:
        closed = hessian_product(program.loss, [output.detach() for output in outputs], targets)
        if closed is not None:
            return lambda u: closed(list(u))
    with _second_derivative(program):
        slopes = grad(loss, outputs, create_graph=True, allow_unused=True) if outputs and loss.requires_grad else []
    if loss.requires_grad and all(slope is None for slope in slopes):
        raise ValueError(
            "the loss does not depend on the outputs that forward returned, so there is no Gauss-Newton matrix; "
            "return the very tensors from which the loss is computed, not detached"
        )
    curved = [(i, slope) for i, slope in enumerate(slopes) if slope is not None and slope.requires_grad]

    def multiply(u: Tensors) -> Tensors:
        if not curved:  # the loss is linear in the outputs
            return [torch.zeros_like(v) for v in u]
        vectors = [u[i] for i, _ in curved]
        with _second_derivative(program):
            return grad([slope for _, slope in curved], outputs, vectors, retain_graph=True, materialize_grads=True)

    return multiply


@contextlib.contextmanager
def _second_derivative(program: LossOfOutputs | FreeForm) -> Iterator[None]:
    """Within, torch's word that it lacks a derivative becomes an error that names the loss and what to do."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if "is not implemented" not in str(error):
            raise
        raise RuntimeError(
            f"{name_of(program.loss)} has no second derivative in torch ({error}), of which curvature is made; write "
            "the loss in operators that have one, such as log_softmax, logsumexp and indexing, or train with a "
            "first-order optimizer"
        ) from error
