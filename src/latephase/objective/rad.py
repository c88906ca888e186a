"""Points chosen by their residuals: the residual-based adaptive distribution (RAD)."""

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor


@dataclass(frozen=True)
class RAD:
    """Chooses points with probability proportional to eps^k / E[eps^k] + c, eps being the residual's size at a point.

    Residual-based adaptive distribution (Wu, Zhu, Tan, Kartha and Lu 2023, "A comprehensive study of non-adaptive and
    residual-based adaptive sampling for physics-informed neural networks"): candidates are drawn uniformly, E is their
    mean, and points are chosen among them without replacement. Of several residuals at a point eps is their norm.

    Args:
        candidates: so many are drawn for each point that is chosen. It bounds how dense points can get: at most so many
            times as in a uniform draw. The authors' programs take 50 for the Burgers equation and 333 for diffusion,
            every thousand steps of Adam or L-BFGS. Default 10, which costs ten evaluations of the term's residuals,
            beside a hundred steps.
        k: exponent; larger ones go after the largest residuals. Default 1, from the same source.
        c: share of the uniform distribution beside the other, which counts 1; 0 leaves no points where the residual
            vanishes. Default 1, from the same source.

    Raises:
        ValueError: naming the field.
    """

    candidates: int = 10
    k: float = 1.0
    c: float = 1.0

    def __post_init__(self):
        if isinstance(self.candidates, bool) or not isinstance(self.candidates, int) or self.candidates < 1:
            raise ValueError(f"candidates of RAD must be an integer >= 1, got {self.candidates!r}")
        for name in ("k", "c"):
            value = getattr(self, name)
            known = isinstance(value, Real) and not isinstance(value, bool)
            if not (known and math.isfinite(value) and float(value) >= 0):
                raise ValueError(f"{name} of RAD must be finite and >= 0, got {value!r}")

    def probabilities(self, residuals: Tensor) -> Tensor:
        """Of each candidate, in float64 on the CPU; uniform where all residuals are zero.

        Args:
            residuals: [N, k] or [N].
        """
        sizes = residuals.detach().to("cpu", torch.float64)
        sizes = sizes.flatten(1) if sizes.dim() > 1 else sizes.unsqueeze(1)
        # Only their proportions count, and the largest being one nothing overflows.
        largest = sizes.abs().max() if sizes.numel() else torch.tensor(0.0)
        sizes = torch.linalg.vector_norm(sizes / largest if largest > 0 else torch.ones_like(sizes), dim=1) ** self.k
        density = sizes / sizes.mean() + self.c
        return density / density.sum()

    def choose(self, residuals: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Rows of n different candidates, int64 [n] in rising order.

        Args:
            residuals: of N >= n candidates, [N, k] or [N], finite.
            n: how many to choose.
            generator: of the CPU, to choose with.
        """
        p = self.probabilities(residuals)
        # The n first of N clocks that ring at rates p are n draws without replacement; those at rate zero come last.
        rings = torch.empty_like(p).exponential_(generator=generator) / p
        return rings.topk(n, largest=False).indices.sort().values
