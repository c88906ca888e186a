"""When conjugate gradients stop: Martens' progress rule, the residual rule, and the status that says which one did."""

import math
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor


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


def progress_window(iteration: int) -> int:
    """Over how many iterations Martens' rule takes the progress: k = max(10, i/10)."""
    return max(10, math.ceil(0.1 * iteration))


class ModelHistory:
    """The model values of a run, and Martens' rule on them, for all blocks at once and without reading the device.

    With m_i the model's value after i iterations and k = max(10, i/10), conjugate gradients stop when i > k,
    m_{i-k} < 0 and (m_i - m_{i-k}) / m_i < k * tolerance (Martens 2010, Section 4.4). The factor k stands in the paper
    and in Martens' own program; the published PyTorch program leaves it out and so runs longer. The condition on
    m_{i-k}, instead of m_i, is that of Martens' program: a warm start may begin above zero, where relative progress
    says nothing.

    Args:
        max_iter: last iteration to be recorded.
        tolerances: least relative progress per iteration, one per block.
        device: where the values live.

    Attributes:
        values: m_i of each block, in the row of its iteration [max_iter + 2, B]; the last row stays zero.
    """

    def __init__(self, max_iter: int, tolerances: Sequence[float], device: torch.device):
        # In float64 wherever there is one: progress is the difference of two close values.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.values = torch.zeros(max_iter + 2, len(tolerances), dtype=dtype, device=device)
        self._recorded = torch.full((1,), -1, device=device)
        self._now = self.values[:1]
        self._one, self._zero = torch.ones_like(self._recorded), torch.zeros((), dtype=dtype, device=device)
        windows = [progress_window(i) for i in range(max_iter + 1)]
        # Up to iteration k there is nothing to compare with: the row of zeros makes the rule silent.
        earlier = [i - k if i > k else max_iter + 1 for i, k in enumerate(windows)]
        self._earlier = torch.tensor(earlier, device=device)
        self._limits = torch.tensor([[k * t for t in tolerances] for k in windows], dtype=dtype, device=device)

    def record(self, values: Tensor) -> None:
        """Store the values [B] of the next iteration, the start being iteration 0."""
        self._recorded.add_(self._one)
        self._now = values.unsqueeze(0)
        self.values.index_copy_(0, self._recorded, self._now)

    def progress_is_small(self) -> Tensor:
        """Where the relative progress over the last k iterations has become too small [B]."""
        earlier = self.values.index_select(0, self._earlier.index_select(0, self._recorded))
        limits = self._limits.index_select(0, self._recorded)
        small = ((self._now - earlier) / self._now < limits) | (self._now == self._zero)
        return (small & (earlier < self._zero)).squeeze(0)
