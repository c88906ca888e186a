"""Structural damping: curvature that holds the hidden states of a recurrent network where they are."""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .chunks import Chunk, _setting
from .objective import Objective
from .program import LossOfOutputs, WithHidden

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
        raise ValueError("structural_damping does not work with an objective made by from_forward")
    damped = copy.copy(objective)
    device = next(objective.model.parameters()).device
    strength = torch.tensor(coefficient, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    weights = objective.weights  # of the chunks as they are; kept, since they are cached
    damped.program = _StructuralProgram(objective.program)
    # A tensor beside the targets, and not a number, so that one trace serves every damping.
    damped.chunks = [Chunk(chunk.inputs, (chunk.targets, strength), chunk.rows) for chunk in objective.chunks]
    damped.weights = weights
    return damped


class _StructuralProgram(LossOfOutputs):
    """The program whose outputs are those of the loss and the pre-activations."""

    def __init__(self, program: LossOfOutputs):
        super().__init__(_StructuralLoss(program), program.forward)
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


class _StructuralLoss:
    """The loss, and a term that is zero with zero slope at the pre-activations as they are, and curved there."""

    def __init__(self, program: LossOfOutputs):
        self.program = program
        self.mean = _setting(program.loss, "reduction", "mean") != "sum"

    def __call__(self, outputs: WithHidden, targets: tuple[Tensor, Tensor]) -> Tensor:
        own, strength = targets
        loss = self.program._loss(outputs.outputs, own)
        hidden = outputs.pre_activations
        for h in hidden if isinstance(hidden, (tuple, list)) else (hidden,):
            here = h.detach()
            slopes = SLOPES[outputs.nonlinearity](here)
            scale = strength.to(h.dtype) / (2 * own.shape[0] if self.mean else 2)
            loss = loss + scale * (slopes * (h - here).square()).sum()
        return loss
