"""The end of a run of conjugate gradients: why each block stopped, and the iterates that were kept."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .iteration import Iteration
from .stopping import CGStatus


@dataclass(frozen=True)
class CGResult:
    """What conjugate gradients found.

    The quadratic model is m(x) = 0.5 x'Ax - b'x; with several blocks it is the sum of the blocks' models. Where a
    second model was given, iterates and values are those of `Reweighing` on it.

    Attributes:
        solution: last iterate [P] of conjugate gradients themselves.
        iterates: iterates on the grid of iterations; without a second model the last one is `solution`.
        indices: iteration of each iterate, strictly increasing.
        values: m per block at each iterate.
        iterations: iterations done on each block.
        status: why each block stopped.
        products: products with A that were computed, that of the start included.
    """

    solution: Tensor
    iterates: list[Tensor]
    indices: list[int]
    values: list[tuple[float, ...]]
    iterations: tuple[int, ...]
    status: tuple[CGStatus, ...]
    products: int


class Ending:
    """What the host makes of a run that is over.

    Args:
        run: the run.
        x0: where it started, before scaling; None for zero.
        kept: iteration and iterate of each grid point, in order; may go beyond the last step of the run.
        products: products so far.
    """

    def __init__(self, run: Iteration, x0: Tensor | None, kept: list[tuple[int, Tensor]], products: int):
        self.run = run
        self.x0 = x0
        self.kept = kept
        self.products = products
        self.scalars: list[list[float]] = run.scalars.tolist()
        self.rz: list[float] = run.rz.tolist()
        self.curvature: list[float] = run.curvature.tolist()
        self.active: list[bool] = run.active.tolist()
        self.iterations: list[int] = run.iterations.tolist()
        self.values: list[list[float]] = run.history.values[: max(self.iterations) + 1].tolist()

    def result(self, device: torch.device, reweighed: list[tuple[Tensor, Tensor]]) -> CGResult:
        """The result, its iterates on `device`; may cost one product more.

        Args:
            device: where the iterates live.
            reweighed: iterate and values of the second model beside each of `kept`; empty without one.

        Raises:
            ValueError: the preconditioner is not positive definite.
        """
        status = [self._status(block) for block in range(len(self.active))]
        for block in range(len(status)):
            if self._broken(block) and self.iterations[block] > 0:
                self._restore(block)
        self._take_steepest(status)
        last = max(self.iterations)
        indices = [index for index, _ in self.kept if index < last]
        iterates = [x for index, x in self.kept if index < last] + [self.run.x.to(device)]
        values = [tuple(self.values[index]) for index in [*indices, last]]
        if self.run.reweighing is not None:
            before = reweighed[: len(indices)]
            iterates = [x for x, _ in before] + [self.run.reweighing.x.to(device)]
            values = [tuple(m.tolist()) for m in [*(m for _, m in before), self.run.reweighing.values]]
        return CGResult(
            solution=self.run.x,
            iterates=iterates,
            indices=[*indices, last],
            values=values,
            iterations=tuple(self.iterations),
            status=tuple(status),
            products=self.products,
        )

    def _status(self, block: int) -> CGStatus:
        """Why the block stopped, from the scalars on which it did."""
        if self.active[block]:
            return CGStatus.MAX_ITERATIONS
        if not math.isfinite(self.run.b_norms[block]) or not math.isfinite(self.curvature[block]):
            return CGStatus.NONFINITE
        residual = math.sqrt(self.scalars[0][block])
        if self._refused(block):
            # Where nothing is left but rounding, p'Ap may underflow or round to a negative number.
            rounding = torch.finfo(self.run.b.dtype).eps * self.run.b_norms[block]
            return CGStatus.RESIDUAL if residual <= rounding else CGStatus.NONPOSITIVE_CURVATURE
        if self.rz[block] < -torch.finfo(self.run.b.dtype).tiny:  # below, numbers have lost their digits, and sign
            raise ValueError(
                f"the preconditioner is not positive definite: r'M^-1 r = {self.rz[block]:.3g} on block {block}; "
                "it must map every r to a vector that makes an acute angle with r"
            )
        if self._broken(block):
            return CGStatus.NONFINITE
        by_residual = self.rz[block] <= 0 or self.run.residual_tolerances is not None
        return CGStatus.RESIDUAL if by_residual else CGStatus.PROGRESS

    def _refused(self, block: int) -> bool:
        """Whether the last direction allowed no step."""
        curvature = self.curvature[block]
        return curvature == 0 or (curvature < 0 and self.run.nonpositive_curvature == "truncate")

    def _broken(self, block: int) -> bool:
        """Whether the block's last step led where numbers are not finite."""
        return not all(math.isfinite(row[block]) for row in self.scalars)

    def _restore(self, block: int) -> None:
        """Put the last kept iterate from before the broken step back, whose numbers are finite."""
        broken_at = self.iterations[block]
        before = [(index, x) for index, x in self.kept if index < broken_at]
        index, x = before[-1] if before else (0, None)
        source = self._start(block) if x is None else self.run.split(x)[block]
        self._overwrite(block, source, since=broken_at)
        for values in self.values[broken_at:]:
            values[block] = self.values[index][block]
        self.iterations[block] = index

    def _start(self, block: int) -> Tensor:
        """The block of the iterate 0."""
        x = torch.zeros_like(self.run.split(self.run.x)[block])
        scale = self.run.start_scales[block]
        if self.x0 is not None and scale:
            x.copy_(self.run.split(self.x0)[block]).mul_(scale)
        return x

    def _take_steepest(self, status: list[CGStatus]) -> None:
        """Make M^-1 b the iterate of blocks that truncation stopped before any iterate better than zero."""
        truncated = [status is CGStatus.NONPOSITIVE_CURVATURE for status in status]
        blocks = [i for i, n in enumerate(self.iterations) if truncated[i] and n == 0 and not self.values[0][i] < 0]
        if not blocks:
            return
        direction, steepest_values = self.run.steepest(blocks)
        self.products += 1
        for block in blocks:
            self._overwrite(block, self.run.split(direction)[block])
            for values in self.values:
                values[block] = steepest_values[block]
        if self.run.reweighing is not None:
            self.run.reweighing.follow(direction)

    def _overwrite(self, block: int, source: Tensor, since: int = 0) -> None:
        """Write a block of the last iterate, and of those kept since an iteration."""
        for x in [self.run.x, *(x for index, x in self.kept if index >= since)]:
            self.run.split(x)[block].copy_(source)
