"""The quadratic model of one step, as solved by conjugate gradients."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...curvature import Linearization, OverBlocks, damped, linearize, over_blocks, structurally_damped
from ...objective import Objective
from ...parameters import ParameterSpace
from ...solve import CGResult, CGStatus, conjugate_gradient
from .block_ranks import BlockRanks
from .parts import CG, GGN, Hessian

Precondition = Callable[[Any, float | Tensor], Callable[[Tensor], Tensor] | None]
"""(linearised curvature, damping) -> r [P] -> M^-1 r [P], or none."""


@dataclass(frozen=True)
class LocalModel:
    """The damped quadratic model at the current parameters and its approximate minimisers.

    Attributes:
        space: order of the flat vectors [P].
        loss: f(theta).
        evaluation_loss: the same on the evaluation data, where it is known already.
        gradient: of the model that the candidates minimise [P].
        gradient_norm: Euclidean norm of the objective's gradient.
        damping: lambda.
        damping_scale: factor on it, one number or one per parameter [P].
        cg: what conjugate gradients found.
        products: products with curvature matrices.
        method: how they were computed.
        block_methods: how the product of each block was computed, where there are several.
        recomputed: chunks that were linearised anew at every product.
        buffers: the model's buffers as an ordinary forward pass on the data leaves them.
    """

    space: ParameterSpace
    loss: Tensor
    evaluation_loss: float | None
    gradient: Tensor
    gradient_norm: float
    damping: float
    damping_scale: float | Tensor
    cg: CGResult
    products: int
    method: str
    block_methods: tuple[str, ...] | None
    recomputed: int
    buffers: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        """Whether loss, gradient and every product were finite."""
        numbers = math.isfinite(self.gradient_norm) and bool(self.loss.isfinite())
        values = all(math.isfinite(value) for values in self.cg.values for value in values)
        return numbers and values and CGStatus.NONFINITE not in self.cg.status

    def predicted(self, candidate: int, with_damping: bool) -> Tensor:
        """The model's change q(p) for a candidate p, without another product.

        Args:
            candidate: index of the iterate.
            with_damping: whether the term 0.5 lambda |p|^2 counts.
        """
        value = math.fsum(self.cg.values[candidate])
        p = self.cg.iterates[candidate].to(self.space.device)
        if with_damping:
            return torch.tensor(value, dtype=torch.float64, device=p.device)
        return value - 0.5 * self.damping * torch.dot(self.damping_scale * p, p).double()


def solve(
    objective: Objective,
    evaluation: Objective,
    curvature_objective: Objective,
    space: ParameterSpace,
    options: Mapping[str, Any],
    *,
    damping: float,
    damping_scale: float | Tensor,
    blocks: list[int],
    tolerances: list[float],
    start: Tensor | None,
    at_once: bool,
    expected: int,
    precondition: Precondition,
    block_group: dist.ProcessGroup | None = None,
) -> LocalModel:
    """Gradient and curvature of the objective, and the iterates of conjugate gradients on them.

    Args:
        objective: gives loss and gradient.
        evaluation: gives slopes and curvatures along the directions where the options ask for `debias`.
        curvature_objective: gives the curvature.
        space: the parameters.
        options: of the optimizer.
        damping: lambda.
        damping_scale: factor on it.
        blocks: sizes of the blocks of the curvature.
        tolerances: of conjugate gradients on each block.
        start: of conjugate gradients [P], or none.
        at_once: trace a shape that is seen for the first time.
        expected: about how many products there will be.
        precondition: makes the preconditioner.
        block_group: the ranks that share the blocks, or none.
    """
    curvature: GGN | Hessian = options["curvature"]
    solver: CG = options["solver"]

    def curvature_of(source: Objective) -> Linearization:
        if curvature.structural_damping > 0:
            source = structurally_damped(source, damping * curvature.structural_damping)
        return linearize(
            source, curvature.kind, space.parameters, curvature.dtype, at_once=at_once, compile=curvature.compile
        ).unwatched()

    def operator(curved: Linearization) -> Callable[[Tensor], Tensor]:
        multiply = curved.matvec if len(blocks) == 1 else by_blocks(curved).matvec
        return damped(multiply, damping * damping_scale)

    def by_blocks(curved: Linearization) -> OverBlocks:
        return over_blocks(curved, blocks, expected, None if options["blocks"] is None else options["blocks"].samples)

    curved = curvature_of(curvature_objective)
    linear = curved
    if curvature_objective is not objective:
        linear = linearize(objective, parameters=space.parameters, products=False)
    other = curvature_of(evaluation) if options["debias"] else None
    downhill = -linear.gradient
    usable = bool(linear.loss.isfinite())
    if not usable:
        downhill.fill_(math.nan)  # ends conjugate gradients at once, with the status that says why
    ranks = None if block_group is None or len(blocks) == 1 else BlockRanks(block_group, blocks)
    cg = (conjugate_gradient if ranks is None else ranks.conjugate_gradient)(
        operator(curved),
        downhill,
        start,
        preconditioner=precondition(_over(curved, curvature_objective), damping * damping_scale) if usable else None,
        max_iter=solver.max_iter,
        stopping=solver.stopping,
        tolerance=tolerances,
        block_sizes=blocks,
        nonpositive_curvature=solver.nonpositive_curvature,
        rescale_x0=True,
        share=objective.reduce.share,
        capture=curvature.compile and other is None and _may_be_captured(curved, len(blocks)),
        iterates_device="cpu" if solver.on_host else None,
        second=None if other is None else (operator(other), -other.gradient),
    )
    judged = linear if evaluation is objective else other
    return LocalModel(
        space=space,
        loss=linear.loss,
        evaluation_loss=None if judged is None else float(judged.loss),
        gradient=(other or linear).gradient,
        gradient_norm=float(objective.reduce.share(linear.gradient.norm())),
        damping=damping,
        damping_scale=damping_scale,
        cg=cg,
        # A captured product is replayed without being counted.
        products=max(cg.products, curved.products) + (other.products if other else 0),
        method=curved.method,
        block_methods=by_blocks(curved).methods if len(blocks) > 1 else None,
        recomputed=curved.recomputed,
        buffers=linear.buffers,
    )


def _over(curved: Linearization, objective: Objective) -> Any:
    """What a preconditioner gets: the products, and the objective without the term of structural damping."""
    return curved if curved.objective is objective else _Over(curved, objective)


class _Over:
    """A linearisation with another objective: everything else is the linearisation's."""

    def __init__(self, curved: Linearization, objective: Objective):
        self._curved, self.objective = curved, objective

    def __getattr__(self, name: str) -> Any:
        return getattr(self._curved, name)


def _may_be_captured(curved: Linearization, blocks: int) -> bool:
    """Whether a product enqueues the same work every time and reads nothing back."""
    return curved.method == "traced" and not curved.recomputed and blocks == 1 and curved.objective.reduce.size == 1
