"""Structural damping: curvature that holds the hidden states of a recurrent network where they are."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..objective import Chunk, LossOfOutputs, Objective, WithHidden, setting

SLOPES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "tanh": lambda h: 1 - h.tanh().square(),
        "sigmoid": lambda h: h.sigmoid() * (-h).sigmoid(),
        "relu": lambda h: (h > 0).to(h.dtype),
        "softplus": torch.sigmoid,
        "identity": torch.ones_like,
    }
)
"""Derivative phi'(h) of each nonlinearity, which is the second derivative of its matching loss."""


def structurally_damped(objective: Objective, coefficient: float) -> Objective:
    """The same objective at the current parameters in value and gradient, with more curvature.

    The curvature gains coefficient * (1/n) sum over examples of J_h' diag(phi'(h)) J_h, with J_h the Jacobian of the
    pre-activations h at all time steps in the parameters and phi' the slope of the nonlinearity, that is the Hessian of
    its matching loss (Martens and Sutskever 2011, Section 3; as in Sutskever's own program, on the pre-activations). A
    loss that sums over the examples gets the sum here too.

    Args:
        objective: its model or `forward` returns `WithHidden`.
        coefficient: lambda times mu.

    Raises:
        ValueError: the objective is made by `from_forward`.
    """
    if not isinstance(objective.program, LossOfOutputs):
        raise ValueError(
            "structural_damping does not work with an objective made by from_forward, which cannot tell hidden "
            "units from outputs; write Objective(model, loss, data) with a model or `forward` that returns WithHidden"
        )
    device = next(objective.model.parameters()).device
    wide = torch.float32 if device.type == "mps" else torch.float64
    mean = setting(objective.program.loss, "reduction", "mean") != "sum"
    (rows,) = objective.reduce.sum([torch.tensor(float(objective.own_rows), device=device)])
    chunks, weights = [], []
    for chunk, weight in zip(objective.chunks, objective.weights, strict=True):
        # All rows count alike in the term, whatever their weight in the loss. Tensors beside the targets, and not
        # numbers, so that one trace serves every damping; a chunk none of whose targets counts has no loss.
        share = 0.0 if objective.idle else chunk.rows / float(rows) if mean else 1.0
        numbers = [coefficient / chunk.rows if mean else coefficient, *([weight / share] if weight else [])]
        tensors = (torch.tensor(number, dtype=wide, device=device) for number in numbers)
        chunks.append(Chunk(chunk.inputs, (chunk.targets, *tensors), chunk.rows))
        weights.append(share)
    return objective.with_term(_StructuralProgram(objective.program), chunks, weights)


class _StructuralProgram(LossOfOutputs):
    """The program whose outputs are those of the loss and the pre-activations."""

    def __init__(self, program: LossOfOutputs):
        super().__init__(StructuralLoss(program), program.forward)
        self._widens = program._widens

    def _seen(self, outputs: Any) -> Any:
        if not isinstance(outputs, WithHidden):
            raise ValueError(
                "structural_damping needs the pre-activations of hidden units: return "
                f"latephase.WithHidden(outputs, pre_activations) from the model or `forward`, not "
                f"{type(outputs).__name__}"
            )
        if outputs.nonlinearity not in SLOPES:
            raise ValueError(f"nonlinearity must be one of {', '.join(SLOPES)}; got {outputs.nonlinearity!r}")
        return outputs


class StructuralLoss:
    """The loss, and a term that is zero with zero slope at the pre-activations as they are, and curved there."""

    def __init__(self, program: LossOfOutputs):
        self.program = program

    def __call__(self, outputs: WithHidden, targets: tuple[Tensor, ...]) -> Tensor:
        """The loss with the term; targets are those of the loss, the strength of the term, and the loss's factor."""
        own, strength, *factor = targets
        hidden = outputs.pre_activations
        hidden = tuple(hidden) if isinstance(hidden, (tuple, list)) else (hidden,)
        for h in hidden or (None,):
            if not isinstance(h, Tensor) or h.dim() == 0 or h.shape[0] != own.shape[0]:
                what = f"shape {list(h.shape)}" if isinstance(h, Tensor) else type(h).__name__
                raise ValueError(
                    f"pre_activations of WithHidden must be a tensor [rows, ...] or several such tensors, with "
                    f"{own.shape[0]} rows here; got {what}"
                )
        loss = hidden[0].new_zeros(())
        if factor:
            loss = self.program.loss_of(outputs.outputs, own)
            loss = loss * factor[0].to(loss.dtype)
        for h in hidden:
            here = h.detach()
            slopes = SLOPES[outputs.nonlinearity](here)
            loss = loss + strength.to(h.dtype) / 2 * (slopes * (h - here).square()).sum()
        return loss
