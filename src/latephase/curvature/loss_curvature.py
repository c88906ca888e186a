"""Products with H_L, the Hessian of the loss in the outputs."""

import torch
from torch import Tensor
from torch.autograd import grad

from ..program import FreeForm
from .forward_pass import ForwardPass, Tensors


class LossCurvature:
    """H_L of one chunk, by double backward through the loss alone; its graph is built once.

    Args:
        forward: the chunk's forward pass.

    Raises:
        ValueError: the loss does not depend on the outputs, so that there is no Gauss-Newton matrix.
    """

    def __init__(self, forward: ForwardPass):
        loss, self._outputs = forward.loss, forward.outputs
        if len(self._outputs) > 1 and not isinstance(forward.objective.program, FreeForm):
            # One output may be computed from another: cut them off, for the derivative in each alone.
            loss, self._outputs = forward.loss_of_detached_outputs()
        slopes = grad(loss, self._outputs, create_graph=True, allow_unused=True) if self._outputs else []
        if loss.requires_grad and all(slope is None for slope in slopes):
            raise ValueError(
                "the loss does not depend on the outputs that forward returned, so there is no Gauss-Newton matrix; "
                "return the very tensors from which the loss is computed, not detached"
            )
        self._slopes: list[Tensor | None] = [s if s is not None and s.requires_grad else None for s in slopes]

    def multiply(self, u: Tensors) -> Tensors:
        """H_L u; zero where the loss is linear in the outputs."""
        curved = [(s, v) for s, v in zip(self._slopes, u, strict=True) if s is not None]
        if not curved:
            return [torch.zeros_like(v) for v in u]
        slopes, vectors = zip(*curved, strict=True)
        return grad(slopes, self._outputs, vectors, retain_graph=True, materialize_grads=True)
