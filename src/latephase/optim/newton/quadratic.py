"""The quadratic model of one step: everything that a solver sees."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ...curvature import Linearization, Matvec, OverBlocks, damped, linearize, structurally_damped
from ...objective import Objective
from ...parameters import ParameterSpace
from .curvatures import GGN, Hessian


@dataclass(frozen=True)
class Linearized:
    """The objectives of one step, linearised once at the current parameters.

    Attributes:
        curved: gives the curvature.
        linear: gives loss and gradient.
        other: gives slopes and curvatures along directions, where those are the evaluation data's; else None.
        over: products of several blocks; None where there is one.
        by_blocks: makes such products; None where there is one block.
    """

    curved: Linearization
    linear: Linearization
    other: Linearization | None
    over: OverBlocks | None
    by_blocks: Callable[[Linearization], OverBlocks] | None

    @property
    def usable(self) -> bool:
        """Whether the loss is finite."""
        return bool(self.linear.loss.isfinite())


def linearized(
    objective: Objective,
    curvature_objective: Objective,
    other: Objective | None,
    space: ParameterSpace,
    curvature: GGN | Hessian,
    damping: float,
    at_once: bool,
    over: Callable[[Linearization], OverBlocks] | None,
    method: str = "auto",
) -> Linearized:
    """Linearise the objectives of a step.

    Args:
        objective: gives loss and gradient.
        curvature_objective: gives the curvature.
        other: gives slopes and curvatures along the directions, or none.
        space: the parameters.
        curvature: which matrix, and how it is computed.
        damping: lambda, which scales structural damping.
        at_once: trace a shape that is seen for the first time.
        over: makes products of several blocks; None where there is one.
        method: of products, see `linearize`; "double_backward" where none will be asked for.
    """

    def curvature_of(source: Objective) -> Linearization:
        if curvature.structural_damping > 0:
            source = structurally_damped(source, damping * curvature.structural_damping)
        return linearize(
            source,
            curvature.kind,
            space.parameters,
            curvature.dtype,
            method,
            at_once=at_once,
            compile=curvature.compile,
        ).unwatched()

    curved = linear = curvature_of(curvature_objective)
    if curvature_objective is not objective:
        linear = linearize(objective, parameters=space.parameters, products=False)
    also = None if other is None else curvature_of(other)
    return Linearized(curved, linear, also, None if over is None else over(curved), over)


@dataclass(frozen=True)
class Quadratic:
    """The damped quadratic model q(p) = g'p + 0.5 p'(C + lambda S)p at the current parameters.

    Attributes:
        space: order of the flat vectors [P].
        gradient: g [P]; not a number where the loss is not finite, so that a solver ends at once.
        matvec: v [P] -> (C + lambda S) v [P].
        damping: lambda.
        damping_scale: S, one number or one per parameter [P].
        blocks: sizes of the consecutive blocks within which the curvature is.
        tolerances: of the solver on each block.
        precondition: r [P] -> M^-1 r [P], or none.
        second: matvec and gradient of the model that the candidates minimise along the solver's directions, or none.
        share: makes scalars equal on all ranks.
        block_group: ranks that share the blocks, or none.
        capture: whether a product enqueues the same work every time and reads nothing back, and is to be replayed.
        loss: f(theta).
        gradient_norm: Euclidean norm of the objective's gradient.
        buffers: the model's buffers as an ordinary forward pass on the data leaves them.
        seen: what was linearised.
    """

    space: ParameterSpace
    gradient: Tensor
    matvec: Matvec
    damping: float
    damping_scale: float | Tensor
    blocks: list[int]
    tolerances: list[float]
    precondition: Matvec | None
    second: tuple[Matvec, Tensor] | None
    share: Callable[[Tensor], Tensor]
    block_group: dist.ProcessGroup | None
    capture: bool
    loss: Tensor
    gradient_norm: float
    buffers: dict[str, Tensor]
    seen: Linearized

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are finite."""
        return math.isfinite(self.gradient_norm) and self.seen.usable

    @property
    def slopes(self) -> Tensor:
        """Gradient of the model that the candidates minimise [P]."""
        return self.gradient if self.second is None else self.second[1]

    def undamped(self, value: float, p: Tensor) -> Tensor:
        """The model's change without the term 0.5 lambda p'Sp, from that with it, at a step p [P]."""
        return value - 0.5 * self.damping * torch.dot(self.damping_scale * p, p).double()


def quadratic_of(
    seen: Linearized,
    *,
    damping: float,
    damping_scale: float | Tensor,
    blocks: Sequence[int],
    tolerances: Sequence[float],
    precondition: Matvec | None,
    block_group: dist.ProcessGroup | None,
    capture: bool,
) -> Quadratic:
    """The quadratic model of what was linearised.

    Args:
        seen: the objectives.
        damping: lambda.
        damping_scale: factor on it.
        blocks: sizes of the blocks of the curvature.
        tolerances: of the solver on each block.
        precondition: the preconditioner, or none.
        block_group: the ranks that share the blocks, or none.
        capture: replay products where they can be captured.
    """

    def operator(curved: Linearization, over: OverBlocks | None) -> Matvec:
        return damped(curved.matvec if over is None else over.matvec, damping * damping_scale)

    curved, linear, other = seen.curved, seen.linear, seen.other
    reduce = linear.objective.reduce
    gradient = linear.gradient if seen.usable else torch.full_like(linear.gradient, math.nan)
    traced = curved.method == "traced" and not curved.recomputed and len(blocks) == 1 and reduce.size == 1
    return Quadratic(
        space=linear.space,
        gradient=gradient,
        matvec=operator(curved, seen.over),
        damping=damping,
        damping_scale=damping_scale,
        blocks=list(blocks),
        tolerances=list(tolerances),
        precondition=precondition if seen.usable else None,
        second=None if other is None else (operator(other, seen.by_blocks and seen.by_blocks(other)), other.gradient),
        share=reduce.share,
        block_group=None if len(blocks) == 1 else block_group,
        capture=capture and other is None and traced,
        loss=linear.loss,
        gradient_norm=float(reduce.share(linear.gradient.norm())),
        buffers=linear.buffers,
        seen=seen,
    )
