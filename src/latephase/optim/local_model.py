"""The quadratic model of one step, as solved by conjugate gradients, and the trial points that it proposes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..objective import Objective
from ..parameters import ParameterSpace
from ..solve import CGResult, CGStatus


@dataclass(frozen=True)
class LocalModel:
    """The damped quadratic model at the current parameters and its approximate minimisers.

    Attributes:
        space: order of the flat vectors [P].
        loss: f(theta).
        gradient: [P].
        gradient_norm: its Euclidean norm.
        damping: lambda.
        damping_scale: factor on it, one number or one per parameter [P].
        cg: what conjugate gradients found.
        products: products with the curvature matrix.
        method: how they were computed.
        recomputed: chunks that were linearised anew at every product.
        buffers: the model's buffers as an ordinary forward pass on the data leaves them.
    """

    space: ParameterSpace
    loss: Tensor
    gradient: Tensor
    gradient_norm: float
    damping: float
    damping_scale: float | Tensor
    cg: CGResult
    products: int
    method: str
    recomputed: int
    buffers: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        """Whether loss, gradient and every product were finite."""
        numbers = math.isfinite(self.gradient_norm) and bool(self.loss.isfinite())
        return numbers and CGStatus.NONFINITE not in self.cg.status

    def predicted(self, candidate: int) -> Tensor:
        """The undamped model's change q(p) for a candidate p, without another product: m(p) - 0.5 lambda |p|^2."""
        p = self.cg.iterates[candidate].to(self.space.device)
        damped = math.fsum(self.cg.values[candidate])
        return damped - 0.5 * self.damping * torch.dot(self.damping_scale * p, p).double()


@dataclass(frozen=True)
class Outcome:
    """What the evaluation objective made of the candidates.

    Attributes:
        loss: f on the evaluation data at theta.
        new_loss: the same where the step leads; `loss` where it is rejected.
        ratio: reduction ratio of the chosen candidate.
        iteration: iteration of the chosen candidate.
        lr: step size relative to the groups' own; 0.0 where the step is rejected.
        step_norm: Euclidean norm of the step taken.
        vector: the new parameters [P]; None where the step is rejected.
    """

    loss: float
    new_loss: float
    ratio: float = -math.inf
    iteration: int = 0
    lr: float = 0.0
    step_norm: float = 0.0
    vector: Tensor | None = None


class Trials:
    """Losses of the evaluation objective at trial points theta + p, each a function call without side effect."""

    def __init__(self, objective: Objective, space: ParameterSpace):
        self.objective = objective
        self.space = space
        self.theta = space.values()

    def point(self, p: Tensor) -> Tensor:
        """Theta + p [P]."""
        return self.theta + p

    def value(self, p: Tensor) -> float:
        """f(theta + p)."""
        return float(self.objective.value(self.space.named(self.point(p.to(self.space.device)))))
