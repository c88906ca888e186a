"""The report of a Newton step."""

from ..parts import StepReport
from .outcome import Outcome
from .path import Path
from .quadratic import Quadratic


def report_of(quadratic: Quadratic, path: Path, outcome: Outcome, lr: float, own: bool, seconds: float) -> StepReport:
    """What a step saw and did.

    Args:
        quadratic: its model.
        path: its candidates.
        outcome: what became of them.
        lr: of the first param group.
        own: whether the evaluation objective is the objective.
        seconds: that it took.
    """
    seen = quadratic.seen
    # A captured product is replayed without being counted.
    products = max(path.products, seen.curved.products) + (seen.other.products if seen.other else 0)
    return StepReport(
        loss=float(quadratic.loss),
        new_loss=outcome.new_loss if own else None,
        evaluation_loss=outcome.loss,
        new_evaluation_loss=outcome.new_loss,
        gradient_norm=quadratic.gradient_norm,
        step_norm=outcome.step_norm,
        damping=quadratic.damping,
        predicted_change=outcome.predicted,
        reduction_ratio=outcome.ratio,
        lr=outcome.lr * lr,
        cg_iterations=path.iterations,
        cg_status=path.status,
        cg_chosen=outcome.iteration,
        products=products,
        method=seen.curved.method,
        block_methods=None if seen.over is None else seen.over.methods,
        recomputed=seen.curved.recomputed,
        status=outcome.status,
        accepted=outcome.vector is not None,
        seconds=seconds,
    )
