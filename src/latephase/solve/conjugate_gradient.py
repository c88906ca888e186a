"""Preconditioned conjugate gradients with a warm start, per-block inner products and stored iterates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .backtracking import iteration_grid
from .stopping import CGStatus, martens_progress, residual_small

STOPPING = ("martens", "residual")
NONPOSITIVE_CURVATURE = ("truncate", "ignore", "absolute")


@dataclass(frozen=True)
class CGResult:
    """What conjugate gradients found.

    The quadratic model is m(x) = 0.5 x'Ax - b'x; with several blocks it is the sum of the blocks' models.

    Attributes:
        solution: last iterate [P].
        iterates: iterates on the grid of iterations, the last one being `solution`.
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


def conjugate_gradient(
    matvec: Callable[[Tensor], Tensor],
    b: Tensor,
    x0: Tensor | None = None,
    *,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    max_iter: int = 250,
    stopping: str = "martens",
    tolerance: float | Sequence[float] = 5e-4,
    block_sizes: Sequence[int] | None = None,
    nonpositive_curvature: str = "truncate",
    rescale_x0: bool = False,
    share: Callable[[Tensor], Tensor] | None = None,
) -> CGResult:
    """Solve A x = b approximately by preconditioned conjugate gradients (Nocedal and Wright 2006, Algorithm 5.3).

    Every inner product is taken per block and gives one step size per block, so that a block-diagonal A is solved as
    independent systems side by side, each with its own stopping; a full matrix is the case of one block. A block that
    has stopped stays still, its part of the vectors handed to `matvec` being zero.

    Args:
        matvec: v [P] -> A v [P], symmetric. Block-diagonal if there are several blocks.
        b: right-hand side [P]. Computation is in its dtype, in float32 where that is narrower. Not modified.
        x0: start [P]. Default zero. Not modified.
        preconditioner: r [P] -> M^-1 r [P], symmetric positive definite and, with several blocks, block-diagonal.
        max_iter: cap on iterations. Default 250 (Martens 2010).
        stopping: "martens" (see `martens_progress`) or "residual" (see `residual_small`).
        tolerance: relative progress per iteration, or |r|/|b|, according to `stopping`; one number, or one per block.
        block_sizes: sizes of the consecutive blocks, summing to P. Default one block.
        nonpositive_curvature: what follows when p'Ap <= 0: "truncate" keeps the last iterate, or takes M^-1 b where
            there is none better than zero (Nocedal and Wright 2006, Algorithm 7.1); "absolute" goes on with |p'Ap|
            (as saddle-free Newton does, Dauphin et al. 2014); "ignore" goes on with p'Ap as it is.
        rescale_x0: replace a start with m(x0) > 0 by its best multiple b'x0 / (x0'A x0), or by zero where no positive
            multiple helps. Free of cost, since A x0 is needed anyway. Default False, plain conjugate gradients.
        share: applied to the small tensors of scalars on which branches are taken, so that ranks which hold the same
            vectors up to rounding branch alike. Default none.

    Returns:
        Iterates on the grid 1, 2, 3, 4, 5, 7, ... (see `iteration_grid`), their model values, and a status per block.

    Raises:
        ValueError: an unknown option, max_iter < 1, shapes that do not fit, an integer right-hand side, or a
            preconditioner that shows itself not positive definite.
    """
    sizes, tolerances = _checked(b, x0, max_iter, stopping, tolerance, block_sizes, nonpositive_curvature)
    run = _Run(matvec, b, sizes, preconditioner, nonpositive_curvature, share)
    run.start(x0, rescale_x0)
    run.stop_where_done(stopping, tolerances)
    grid = set(iteration_grid(max_iter))
    iteration = 0
    while any(run.active) and iteration < max_iter:
        iteration += 1
        run.iterate(iteration)
        run.stop_where_done(stopping, tolerances)
        if iteration in grid:
            run.keep()
    run.keep()
    return run.result()


class _Run:
    """The vectors and scalars of one run; the lists hold one entry per block."""

    def __init__(self, matvec, b, sizes, preconditioner, nonpositive_curvature, share):
        self.matvec = matvec
        self.b = b.detach().to(torch.promote_types(b.dtype, torch.float32), copy=True)
        self.p = torch.zeros_like(self.b)
        self.sizes = sizes
        self.precondition = preconditioner or (lambda r: r)
        self.nonpositive_curvature = nonpositive_curvature
        self.share = share or (lambda scalars: scalars)
        self.active = [True] * len(sizes)
        self.status = [CGStatus.MAX_ITERATIONS] * len(sizes)
        self.iterations = [0] * len(sizes)
        self.values = [0.0] * len(sizes)
        self.products = 0
        self.steepest: set[int] = set()
        self.kept: list[tuple[int, Tensor, tuple[float, ...]]] = []

    def multiply(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.matvec(v).to(self.b.dtype)

    def scalars(self, *pairs: tuple[Tensor, Tensor]) -> list[list[float]]:
        """Inner products per block: one list of B floats for each pair of vectors."""
        rows = [[torch.dot(u, v) for u, v in zip(self.split(x), self.split(y), strict=True)] for x, y in pairs]
        return self.share(torch.stack([torch.stack(row) for row in rows])).tolist()

    def split(self, v: Tensor) -> tuple[Tensor, ...]:
        return v.split(self.sizes)

    def start(self, x0: Tensor | None, rescale: bool) -> None:
        """Set iterate, residual and first direction."""
        self.b_norms = [math.sqrt(square) for square in self.scalars((self.b, self.b))[0]]
        for block, norm in enumerate(self.b_norms):
            if not math.isfinite(norm):
                self._stop(block, CGStatus.NONFINITE)
                self.split(self.b)[block].zero_()
        self.x = torch.zeros_like(self.b)
        self.r = self.b.clone()
        if x0 is not None and bool(x0.any()):
            self.x.copy_(x0)
            self.r -= self.multiply(self.x)
            self._mend_start(rescale)
        z = self.precondition(self.r)
        self._measure(z)
        for active, z_block, p in zip(self.active, self.split(z), self.split(self.p), strict=True):
            if active:
                p.copy_(z_block)
        self.first = (0, self.x.clone(), tuple(self.values))
        self.history = [[value] for value in self.values]

    def _mend_start(self, rescale: bool) -> None:
        """Drop a start whose product is not finite; scale one that is worse than zero, if asked for."""
        bx, xr = self.scalars((self.b, self.x), (self.r, self.x))
        for block, (x, r, b) in enumerate(zip(*map(self.split, (self.x, self.r, self.b)), strict=True)):
            slope, curvature = bx[block], bx[block] - xr[block]  # b'x0 and x0'A x0
            if not (math.isfinite(slope) and math.isfinite(curvature)):
                x.zero_()
                r.copy_(b)
            elif rescale and 0.5 * curvature - slope > 0:
                scale = slope / curvature if slope > 0 and curvature > 0 else 0.0
                x.mul_(scale)
                r.mul_(scale).add_(b, alpha=1 - scale)

    def _measure(self, z: Tensor) -> None:
        """The scalars of the current iterate: r'M^-1 r, |r|^2 and, of active blocks, m(x) = -0.5 x'(r + b)."""
        rz, rr, xr, xb = self.scalars((self.r, z), (self.r, self.r), (self.x, self.r), (self.x, self.b))
        self.rz, self.rr = rz, rr
        for block, active in enumerate(self.active):
            if active:
                self.values[block] = -0.5 * (xr[block] + xb[block])
            if active and rz[block] < 0:
                raise ValueError(
                    f"the preconditioner is not positive definite: r'M^-1 r = {rz[block]:.3g} on block {block}; "
                    "it must map every r to a vector that makes an acute angle with r"
                )

    def iterate(self, iteration: int) -> None:
        """One step of every active block."""
        Ap = self.multiply(self.p)
        curvatures = self.scalars((self.p, Ap))[0]
        vectors = [self.split(v) for v in (self.x, self.r, self.p, Ap)]
        for block, (x, r, p, product) in enumerate(zip(*vectors, strict=True)):
            if not self.active[block]:
                continue
            alpha = self._step_size(block, curvatures[block])
            if alpha is not None:
                self.iterations[block] = iteration
                x.add_(p, alpha=alpha)
                r.sub_(product, alpha=alpha)
        self._take_steepest()
        previous_rz = self.rz
        z = self.precondition(self.r)
        self._measure(z)
        for block, (z_block, p) in enumerate(zip(self.split(z), self.split(self.p), strict=True)):
            if self.active[block] and previous_rz[block] > 0:
                p.mul_(self.rz[block] / previous_rz[block]).add_(z_block)
            self.history[block].append(self.values[block])

    def _step_size(self, block: int, curvature: float) -> float | None:
        """Alpha = r'M^-1 r / p'Ap, or what non-positive curvature asks for; None where the block does not move."""
        if not math.isfinite(curvature):
            self._stop(block, CGStatus.NONFINITE)
            return None
        if curvature > 0 or (curvature < 0 and self.nonpositive_curvature == "ignore"):
            return self.rz[block] / curvature
        if curvature < 0 and self.nonpositive_curvature == "absolute":
            return self.rz[block] / -curvature
        # Where nothing is left but rounding, p'Ap may underflow or round to a negative number.
        rounding = torch.finfo(self.b.dtype).eps * self.b_norms[block]
        done = math.sqrt(self.rr[block]) <= rounding
        self._stop(block, CGStatus.RESIDUAL if done else CGStatus.NONPOSITIVE_CURVATURE)
        return None

    def _take_steepest(self) -> None:
        """Make M^-1 b the iterate of blocks that truncation stopped before any iterate better than zero."""
        truncated = [status is CGStatus.NONPOSITIVE_CURVATURE for status in self.status]
        blocks = [i for i, n in enumerate(self.iterations) if truncated[i] and n == 0 and not self.values[i] < 0]
        if not blocks or self.steepest >= set(blocks):
            return
        self.steepest.update(blocks)
        direction = torch.zeros_like(self.b)
        steepest = self.split(self.precondition(self.b))
        for block in blocks:
            self.split(direction)[block].copy_(steepest[block])
            self.split(self.x)[block].copy_(steepest[block])
        curvature, slope = self.scalars((direction, self.multiply(direction)), (direction, self.b))
        for block in blocks:
            self.values[block] = 0.5 * curvature[block] - slope[block]

    def stop_where_done(self, stopping: str, tolerances: Sequence[float]) -> None:
        """Apply the stopping rule to every active block."""
        for block, tolerance in enumerate(tolerances):
            if not self.active[block]:
                continue
            if not all(map(math.isfinite, (self.rz[block], self.rr[block], self.values[block]))):
                self._stop(block, CGStatus.NONFINITE)
                self._restore(block)
            elif self.rz[block] == 0 or (
                stopping == "residual" and residual_small(math.sqrt(self.rr[block]), self.b_norms[block], tolerance)
            ):
                self._stop(block, CGStatus.RESIDUAL)
            elif stopping == "martens" and martens_progress(self.history[block], tolerance):
                self._stop(block, CGStatus.PROGRESS)

    def _stop(self, block: int, status: CGStatus) -> None:
        self.active[block] = False
        self.status[block] = status
        self.split(self.p)[block].zero_()

    def _restore(self, block: int) -> None:
        """Put the last kept iterate back, whose values are finite."""
        iteration, x, values = self.kept[-1] if self.kept else self.first
        self.iterations[block] = min(self.iterations[block], iteration)
        self.split(self.x)[block].copy_(self.split(x)[block])
        self.values[block] = values[block]

    def keep(self) -> None:
        """Store the current iterate, unless no block has moved since the last one was stored."""
        iteration = max(self.iterations)
        if not self.kept or self.kept[-1][0] < iteration:
            self.kept.append((iteration, self.x.clone(), tuple(self.values)))

    def result(self) -> CGResult:
        """What was kept, and how each block ended."""
        indices, iterates, values = (list(column) for column in zip(*self.kept, strict=True))
        return CGResult(
            solution=iterates[-1],
            iterates=iterates,
            indices=indices,
            values=values,
            iterations=tuple(self.iterations),
            status=tuple(self.status),
            products=self.products,
        )


def _checked(b, x0, max_iter, stopping, tolerance, block_sizes, nonpositive_curvature):
    """Validate the arguments; returns block sizes and one tolerance per block."""
    if b.dim() != 1 or not b.is_floating_point():
        raise ValueError(f"b must be a vector of floating-point numbers, got shape {tuple(b.shape)} of {b.dtype}")
    if x0 is not None and x0.shape != b.shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}, b has {tuple(b.shape)}; they must be the same")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    if stopping not in STOPPING:
        raise ValueError(f"stopping must be one of {', '.join(STOPPING)}; got {stopping!r}")
    if nonpositive_curvature not in NONPOSITIVE_CURVATURE:
        raise ValueError(
            f"nonpositive_curvature must be one of {', '.join(NONPOSITIVE_CURVATURE)}; got {nonpositive_curvature!r}"
        )
    sizes = [b.numel()] if block_sizes is None else list(block_sizes)
    if any(size < 1 for size in sizes) or sum(sizes) != b.numel():
        raise ValueError(f"block sizes {sizes} must be positive and sum to {b.numel()}, the length of b")
    tolerances = [float(tolerance)] * len(sizes) if isinstance(tolerance, (int, float)) else list(tolerance)
    if len(tolerances) != len(sizes) or not all(t >= 0 for t in tolerances):
        raise ValueError(
            f"tolerance must be one number >= 0, or one for each of the {len(sizes)} blocks; got {tolerance}"
        )
    return sizes, tolerances
