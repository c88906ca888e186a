"""Armijo's backtracking line search."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class LineSearchResult:
    """Outcome of a line search.

    Attributes:
        lr: step size taken; 0.0 where no trial was accepted.
        value: loss there; the loss at the start where no trial was accepted.
    """

    lr: float
    value: float


def armijo(
    value: Callable[[float], float],
    f0: float,
    slope: float,
    *,
    lr: float = 1.0,
    c: float = 0.01,
    factor: float = 0.8,
    max_trials: int = 20,
    known: float | None = None,
) -> LineSearchResult:
    """Scale a step back until the loss decreases sufficiently.

    Accepts the first alpha = lr * factor^i, i = 0 .. max_trials, with f(alpha) <= f0 + c * alpha * min(slope, 0)
    (Martens and Sutskever 2012, Section 8.8). The slope is cut at zero because it may come from other data than the
    loss: a positive slope must not admit an increase.

    Args:
        value: alpha -> f(theta + alpha p).
        f0: f(theta).
        slope: g'p.
        lr: first trial. Default 1.0, the full Newton step.
        c: share of the predicted decrease that is asked for. Default 0.01, from the same source.
        factor: ratio of neighbouring trials. Default 0.8, from the same source.
        max_trials: how many times the step is scaled back. Default 20, from Tatzel et al. 2022, Appendix A.1.
        known: f(theta + lr p), where it has been computed already.

    Returns:
        The step size and its loss; lr 0.0 where no trial satisfied the condition.
    """
    alpha = lr
    for trial in range(max_trials + 1):
        loss = value(alpha) if trial or known is None else known
        if loss <= f0 + c * alpha * min(slope, 0.0):
            return LineSearchResult(alpha, loss)
        alpha *= factor
    return LineSearchResult(0.0, f0)
