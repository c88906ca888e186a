"""The report of a Newton step."""

from typing import Any

from ..parts import GaussNewtonReport, StepReport
from .outcome import Outcome
from .path import DampingPath, Path
from .quadratic import Quadratic


def report_of(
    quadratic: Quadratic, path: Path, outcome: Outcome, lr: float, own: bool, seconds: float
) -> StepReport | GaussNewtonReport:
    """What a step saw and did.

    Args:
        quadratic: its model.
        path: its candidates.
        outcome: what became of them.
        lr: of the first param group.
        own: whether the evaluation objective is the objective.
        seconds: that it took.
    """
    shared: dict[str, Any] = {
        "loss": float(quadratic.loss),
        "new_loss": outcome.new_loss if own else None,
        "evaluation_loss": outcome.loss,
        "new_evaluation_loss": outcome.new_loss,
        "gradient_norm": quadratic.gradient_norm,
        "step_norm": outcome.step_norm,
        "damping": path.damping(outcome.iteration, quadratic.damping),
        "predicted_change": outcome.predicted,
        "reduction_ratio": outcome.ratio,
        "lr": outcome.lr * lr,
        "status": outcome.status,
        "accepted": outcome.vector is not None,
        "seconds": seconds,
    }
    if isinstance(path, DampingPath):
        work = path.work(shared["damping"])
        accelerated = bool(path.accelerated) and path.accelerated[outcome.iteration]
        counts: dict[str, Any] = {
            "cholesky": work.cholesky,
            "eigh": work.eigh,
            "svd": work.svd,
            "dampings": work.dampings,
        }
        return GaussNewtonReport(
            **shared, **counts, method="none", rows=work.rows, sides=work.sides, accelerated=accelerated
        )
    seen = quadratic.seen
    return StepReport(
        **shared,
        cg_iterations=path.iterations,
        cg_status=path.status,
        cg_chosen=outcome.iteration,
        # A captured product is replayed without being counted.
        products=max(path.products, seen.curved.products) + (seen.other.products if seen.other else 0),
        method=seen.curved.method,
        block_methods=None if seen.over is None else seen.over.methods,
        recomputed=seen.curved.recomputed,
    )
