"""When conjugate gradients stop: Martens' progress rule, the residual rule, and the status that says which one did."""

import math
from collections.abc import Sequence
from enum import StrEnum


class CGStatus(StrEnum):
    """Why conjugate gradients stopped on a block."""

    PROGRESS = "progress"
    """Martens' rule: the model improves too slowly to be worth another product."""
    RESIDUAL = "residual"
    """The residual is small enough, or within rounding of zero."""
    MAX_ITERATIONS = "max_iterations"
    """The cap on iterations was reached first."""
    NONPOSITIVE_CURVATURE = "nonpositive_curvature"
    """A search direction p with p'Ap <= 0 was met and the run truncated there."""
    NONFINITE = "nonfinite"
    """A product or an inner product was infinite or not a number; the last finite iterate is kept."""


def martens_progress(values: Sequence[float], tolerance: float = 5e-4) -> bool:
    """Whether the relative progress of the quadratic model over the last k iterations has become too small.

    With m_i the model's value after i iterations and k = max(10, i/10), conjugate gradients stop when i > k,
    m_{i-k} < 0 and (m_i - m_{i-k}) / m_i < k * tolerance (Martens 2010, Section 4.4). The factor k stands in the paper
    and in Martens' own program; the published PyTorch program leaves it out and so runs longer. The condition on
    m_{i-k}, instead of m_i, is that of Martens' program: a warm start may begin above zero, where relative progress
    says nothing.

    Args:
        values: m_0, ..., m_i, one value per iteration, the start included.
        tolerance: least relative progress per iteration. Default 5e-4, Martens' value.

    Returns:
        True where the run should stop.
    """
    i = len(values) - 1
    k = max(10, math.ceil(0.1 * i))
    if i <= k or not values[i - k] < 0:
        return False
    return values[i] == 0 or (values[i] - values[i - k]) / values[i] < k * tolerance


def residual_small(residual_norm: float, rhs_norm: float, tolerance: float) -> bool:
    """Whether |r| <= tolerance * |b|, the classical rule (Nocedal and Wright 2006, Section 7.1).

    Args:
        residual_norm: |b - A x|.
        rhs_norm: |b|.
        tolerance: relative tolerance.
    """
    return residual_norm <= tolerance * rhs_norm
