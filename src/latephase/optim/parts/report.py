"""What a second-order step did."""

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ...solve import CGStatus

__all__ = ["CGStatus", "GaussNewtonReport", "NewtonReport", "SecondOrderReport", "StepReport", "StepStatus"]


class StepStatus(StrEnum):
    """What became of a step. All but the first leave the parameters as they were."""

    TAKEN = "taken"
    """The parameters moved."""
    LINE_SEARCH_FAILED = "line_search_failed"
    """No step size along the chosen candidate, or no damping that was tried, lowered the evaluation loss enough: the
    model is not trusted that far, so
    the damping rises where it is adapted, and conjugate gradients start from zero next time."""
    NONFINITE = "nonfinite"
    """A loss, gradient or product was infinite or not a number; the damping rises where it is adapted."""
    STATIONARY = "stationary"
    """The parameters are at a minimum, as far as the numbers can tell: the gradient is zero, or the predicted decrease
    is within the rounding of the loss and no step lowers it, or the step is within the rounding of the parameters. The
    damping stays."""


@dataclass(frozen=True)
class SecondOrderReport:
    """What one step of any second-order optimizer saw and did; losses are those of the objective f with its L2 term.

    Attributes:
        loss: f on the objective's data before the step.
        new_loss: f on the objective's data after the step, `loss` where the step was not taken; None where it was not
            computed, since it would cost one more forward pass: another objective judges the step, or none does.
        gradient_norm: Euclidean norm of the gradient.
        step_norm: Euclidean norm of the change of the parameters as they are stored; 0.0 where the step was not taken.
        damping: lambda used in this step.
        predicted_change: change that the quadratic model predicts, of the loss that judges the step that was tried; not
            a number where something was not finite, None where it was not computed.
        reduction_ratio: actual over predicted change; minus infinity where something was not finite, not a number where
            the predicted change is within the rounding of the loss, which leaves the damping as it is; None where the
            damping is not adapted in this step.
        lr: step size or learning rate taken (the first param group's where they differ); 0.0 where the step was not
            taken, or where a schedule has set it to that.
        method: how products with the curvature matrix were computed: "traced", "linearize" or "double_backward"
            (`curvature.linearize`); "none" where there were none.
        status: what became of the step.
        accepted: whether it was taken.
        seconds: wall-clock time of the step, in seconds.
        collectives: calls of torch.distributed; None where there is one process.
        collective_bytes: that this rank gave to them; what a backend sends for them depends on its algorithm.
    """

    loss: float
    new_loss: float | None
    gradient_norm: float
    step_norm: float
    damping: float
    predicted_change: float | None
    reduction_ratio: float | None
    lr: float
    method: str
    status: StrEnum
    accepted: bool
    seconds: float
    collectives: int | None = field(default=None, kw_only=True)
    collective_bytes: int | None = field(default=None, kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        """The fields as numbers, strings and lists, ready for JSON (which has no infinity: those stay floats).

        Those of several ranks are there where there are several.
        """
        found = {each.name: _plain(getattr(self, each.name)) for each in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if value is not None or name not in _OF_RANKS}


_OF_RANKS = ("collectives", "collective_bytes")


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class NewtonReport(SecondOrderReport):
    """What the steps of all Newton methods have in common.

    Attributes:
        evaluation_loss: f on the evaluation objective's data before the step; not a number where the step ended before
            it was needed, the objective's loss or gradient not being finite.
        new_evaluation_loss: the same after the step.
    """

    predicted_change: float
    reduction_ratio: float
    status: StepStatus
    evaluation_loss: float
    new_evaluation_loss: float

    @property
    def same_data(self) -> bool:
        """Whether the step was judged on the data that gave it: there was no evaluation objective beside the objective.

        On a deterministic problem, whose data are all there is (collocation points that stay, a regression's table),
        that is what it should be. On a batch of more data the gain is overestimated, and so is what is tried next.
        """
        return self.new_loss is not None


@dataclass(frozen=True)
class GaussNewtonReport(NewtonReport):
    """What one step by a direct solve saw and did: beside the fields of `SecondOrderReport` these.

    The evaluation objective judges the step, as in `StepReport`. There are no products, so that `method` is "none";
    `damping` is that of the chosen candidate, whichever the rule began with.

    Attributes:
        evaluation_loss: as in `StepReport`.
        new_evaluation_loss: as in `StepReport`.
        rows: R of J~; 0 where the step ended before there were any.
        sides: on which the system was solved, "primal" [P, P] or "dual" [R, R], one entry per block.
        cholesky: Cholesky decompositions, of all blocks.
        eigh: decompositions into eigenvectors.
        svd: decompositions into singular values.
        dampings: how many were tried.
        accelerated: whether the chosen candidate is corrected for the curvature of the residuals.
    """

    rows: int
    sides: tuple[str, ...]
    cholesky: int
    eigh: int
    svd: int
    dampings: int
    accelerated: bool

    @property
    def products(self) -> int:
        """No products with the curvature matrix."""
        return 0


@dataclass(frozen=True)
class StepReport(NewtonReport):
    """What one step of `HessianFree` saw and did: beside the fields of `SecondOrderReport` these.

    The evaluation objective judges the step: `predicted_change` and `reduction_ratio` are those of its loss and of the
    chosen candidate. They are always there; the ratio is minus infinity also where the model predicted no decrease.

    Attributes:
        evaluation_loss: f on the evaluation objective's data before the step; not a number where the step ended before
            it was needed, the objective's loss or gradient not being finite.
        new_evaluation_loss: the same after the step.
        cg_iterations: iterations of conjugate gradients, one entry per block.
        cg_status: why they stopped, one entry per block.
        cg_chosen: iteration of the chosen candidate.
        products: products with the curvature matrix.
        block_methods: with several blocks how the product of each was computed: "pruned", "jacobian", "bottleneck",
            "sampled" (an estimate) or "products" (`curvature.OverBlocks`); None with one block.
        recomputed: chunks of the data that were linearised anew at every product, since what they need did not fit the
            objective's `memory_limit`.
    """

    cg_iterations: tuple[int, ...]
    cg_status: tuple[CGStatus, ...]
    cg_chosen: int
    products: int
    block_methods: tuple[str, ...] | None
    recomputed: int
