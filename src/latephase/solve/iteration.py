"""One iteration of conjugate gradients as work for a device: vectors, scalars and decisions, none of them read back."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .reweighing import Reweighing
from .stopping import ModelHistory

Blocks = Sequence[Tensor]


class Iteration:
    """The state of one run, and the step from one iterate to the next.

    `advance` reads nothing back, so that it can run ahead of the host or be captured as a CUDA graph: every decision is
    a mask over the blocks, and every tensor that outlives an iteration is written in place. Once a block has stopped,
    its iterate stays, its direction is zero, and its scalars are those on which it stopped; from them the host can tell
    why, however late it looks.

    Args:
        matvec: v [P] -> A v [P].
        b: right-hand side [P] in the dtype of the computation. Not modified.
        sizes: sizes of the B blocks.
        preconditioner: r [P] -> M^-1 r [P], or None.
        nonpositive_curvature: as in `conjugate_gradient`.
        share: as in `conjugate_gradient`.
        history: keeps the model values, and says where progress is small.
        residual_tolerances: |r|/|b| of each block at which it stops; None for Martens' rule.
        ahead: whether `advance` may run for blocks that have stopped since the host last looked.
        reweighing: follows the same directions on a second model, or None.

    Attributes:
        x: iterate [P].
        scalars: |r|^2, x'r, x'b and, with a preconditioner, r'M^-1 r of each block [3 or 4, B].
        rz: r'M^-1 r of each block [B], one of these rows.
        curvature: p'Ap along the last direction of each block [B].
        active: blocks that have not stopped [B].
        iterations: steps that each block has made [B].
        b_norms: |b| of each block.
        start_scales: factor on x0 of each block, with which the run began.
    """

    def __init__(
        self,
        matvec,
        b,
        sizes,
        preconditioner,
        nonpositive_curvature,
        share,
        history,
        residual_tolerances,
        ahead,
        reweighing=None,
    ):
        self.matvec = matvec
        self.b = b
        self.sizes: list[int] = sizes
        self.preconditioner = preconditioner
        self.nonpositive_curvature: str = nonpositive_curvature
        self.share = share or (lambda scalars: scalars)
        self.history: ModelHistory = history
        self.residual_tolerances = residual_tolerances
        self.ahead: bool = ahead
        self.reweighing: Reweighing | None = reweighing
        self.moves = [True] * len(sizes)
        self.x, self.r, self.p = torch.zeros_like(b), b.clone(), torch.zeros_like(b)
        self.x_blocks, self.r_blocks, self.p_blocks = self.split(self.x), self.split(self.r), self.split(self.p)
        count, device = len(sizes), b.device
        wide = {"dtype": history.values.dtype, "device": device}
        self.scalars = torch.zeros(3 if preconditioner is None else 4, count, **wide)
        self.rz_row = 0 if preconditioner is None else 3
        self.rz, self.xr, self.xb = self.scalars[self.rz_row], self.scalars[1], self.scalars[2]
        self.curvature = torch.ones(count, **wide)
        self.iterations = torch.zeros(count, dtype=torch.int64, device=device)
        self.active, self.step, self.stopped = (torch.ones(count, dtype=torch.bool, device=device) for _ in range(3))
        self.alpha, self.beta = (torch.zeros(count, dtype=b.dtype, device=device) for _ in range(2))
        # The scalars of single blocks, as views, so that an iteration need not take them apart.
        self.alphas, self.betas = self.alpha.unbind(), self.beta.unbind()
        self.stops = self.stopped.unbind()
        # Numbers as tensors: Python's own would have to be wrapped at every use, which costs as much as the use.
        self.nothing = torch.zeros((), dtype=b.dtype, device=device)
        self.zero, self.infinity, self.minus_half = torch.tensor([0.0, math.inf, -0.5], **wide).unbind()

    def split(self, v: Tensor) -> Blocks:
        """The blocks of a vector."""
        return (v,) if len(self.sizes) == 1 else v.split(self.sizes)

    def multiply(self, v: Tensor) -> Tensor:
        """A v in the dtype of the computation."""
        return self.matvec(v).detach().to(self.x.dtype)

    def precondition(self, v: Tensor) -> Tensor:
        """M^-1 v; v itself where there is no preconditioner."""
        return v if self.preconditioner is None else self.preconditioner(v).detach()

    def inner(self, *pairs: tuple[Blocks, Blocks]) -> Tensor:
        """Shared inner products per block, one row per pair; zero for blocks that the host knows to stand still."""
        dots = [
            torch.dot(u, v) if moves else self.nothing
            for us, vs in pairs
            for u, v, moves in zip(us, vs, self.moves, strict=True)
        ]
        return self.share(torch.stack(dots).view(len(pairs), -1).to(self.scalars.dtype))

    # -----------------------------------------------------------------------------------------------------------------
    # Start and looks: here the host reads.

    def start(self, x0: Tensor | None, rescale: bool) -> int:
        """Set iterate, residual and first direction; returns the number of products this took."""
        b_blocks = self.split(self.b)
        self.b_norms = [math.sqrt(square) for square in self.inner((b_blocks, b_blocks))[0].tolist()]
        finite = [math.isfinite(norm) for norm in self.b_norms]
        if not all(finite):
            self.b = self.b.clone()
            for b, r, usable in zip(self.split(self.b), self.r_blocks, finite, strict=True):
                if not usable:
                    b.zero_()
                    r.zero_()
        self.b_blocks = self.split(self.b)
        self.start_scales = [1.0] * len(self.sizes)
        products = 0
        if x0 is not None and self._any(x0):
            products = 1
            self.x.copy_(x0)
            self.r -= self.multiply(self.x)
            self._mend_start(rescale)
            if self.reweighing is not None:
                self.reweighing.follow(self.x)
        # Python's numbers become tensors before the first iteration: a transfer could not be captured.
        device, wide = self.b.device, self.scalars.dtype
        norms = torch.tensor(self.b_norms, dtype=wide, device=device)
        if self.residual_tolerances is not None:
            self.residual_limits = torch.tensor(self.residual_tolerances, dtype=wide, device=device) * norms
        self.moves = finite
        self.step.copy_(torch.tensor(finite))
        z = self._measure()
        for p, block, moves in zip(self.p_blocks, self.split(z), self.active.tolist(), strict=True):
            if moves:
                p.copy_(block)
        return products

    def _any(self, v: Tensor) -> bool:
        """Whether the first rank's vector has an entry other than zero."""
        return bool(self.share(v.any().to(self.scalars.dtype).repeat(1, len(self.sizes))).any())

    def _mend_start(self, rescale: bool) -> None:
        """Drop a start whose product is not finite; scale one that is worse than zero, if asked for."""
        slopes, residuals = self.inner((self.b_blocks, self.x_blocks), (self.r_blocks, self.x_blocks)).tolist()
        for block, (x, r, b) in enumerate(zip(self.x_blocks, self.r_blocks, self.b_blocks, strict=True)):
            slope, curvature = slopes[block], slopes[block] - residuals[block]  # b'x0 and x0'A x0
            if not (math.isfinite(slope) and math.isfinite(curvature)):
                self.start_scales[block] = 0.0
                x.zero_()
                r.copy_(b)
            elif rescale and 0.5 * curvature - slope > 0:
                scale = slope / curvature if slope > 0 and curvature > 0 else 0.0
                self.start_scales[block] = scale
                x.mul_(scale)
                r.mul_(scale).add_(b, alpha=1 - scale)

    def look(self) -> bool:
        """Read which blocks still move, and leave the others alone from now on; returns whether any does."""
        for block, active in enumerate(self.active.tolist()):
            if self.moves[block] and not active:
                self.moves[block] = False
                self.p_blocks[block].zero_()
        return any(self.moves)

    def steepest(self, blocks: Sequence[int]) -> tuple[Tensor, list[float]]:
        """M^-1 b [P] on these blocks, zero on the others, and its model value per block; at the end of a run."""
        direction = torch.zeros_like(self.b)
        steepest, chosen = self.split(self.precondition(self.b)), self.split(direction)
        for block in blocks:
            chosen[block].copy_(steepest[block])
        self.moves = [True] * len(self.sizes)
        product = self.split(self.multiply(direction))
        curvature, slope = self.inner((chosen, product), (chosen, self.b_blocks)).tolist()
        return direction, [0.5 * c - s for c, s in zip(curvature, slope, strict=True)]

    # -----------------------------------------------------------------------------------------------------------------
    # One iteration: here nothing is read.

    def advance(self) -> None:
        """One product, and one step of every active block."""
        product = self.multiply(self.p)
        self._choose_steps(self.split(product))
        if self.reweighing is not None:
            self.reweighing.follow(self.p, self.step)
        if self.preconditioner is not None and len(self.sizes) > 1:
            # A block that makes no step may have a NaN here, which a preconditioner could carry over to other blocks.
            # Where there is a step, p'Ap is finite, and so is every entry.
            product = product.nan_to_num()
        self._step(self.split(product))
        self._turn(self._measure())

    def _choose_steps(self, product: Blocks) -> None:
        """Alpha = r'M^-1 r / p'Ap, or what non-positive curvature asks for; zero for blocks that do not step."""
        torch.where(self.active, self.inner((self.p_blocks, product))[0], self.curvature, out=self.curvature)
        size = self.curvature if self.nonpositive_curvature == "truncate" else self.curvature.abs()
        torch.logical_and(self.active, (size > self.zero) & (size < self.infinity), out=self.step)
        torch.div(self.rz, self.curvature if self.nonpositive_curvature == "ignore" else size, out=self.alpha)
        self.alpha.masked_fill_(~self.step, 0.0)
        self.iterations.add_(self.step)

    def _step(self, product: Blocks) -> None:
        """The next iterate and its residual."""
        for block, moves in enumerate(self.moves):
            if moves:
                self.x_blocks[block].addcmul_(self.p_blocks[block], self.alphas[block])
                self.r_blocks[block].addcmul_(product[block], self.alphas[block], value=-1)

    def _measure(self) -> Tensor:
        """Scalars, model values and stops of the blocks that have stepped; returns M^-1 r."""
        z = self.precondition(self.r)
        pairs = [(self.r_blocks, self.r_blocks), (self.x_blocks, self.r_blocks), (self.x_blocks, self.b_blocks)]
        if self.preconditioner is not None:
            pairs.append((self.r_blocks, self.split(z)))
        scalars = self.inner(*pairs)
        torch.div(scalars[self.rz_row], self.rz, out=self.beta)
        torch.where(self.step, scalars, self.scalars, out=self.scalars)
        self.history.record((self.xr + self.xb).mul_(self.minus_half))  # m(x) = -0.5 x'(r + b)
        finite = torch.linalg.vector_norm(self.scalars, ord=1, dim=0) < self.infinity
        if self.residual_tolerances is None:
            done = self.history.progress_is_small()
        else:
            done = self.scalars[0].sqrt() <= self.residual_limits
        torch.logical_and(self.step & finite, (self.rz > self.zero) & ~done, out=self.active)
        return z

    def _turn(self, z: Tensor) -> None:
        """The next direction; zero for blocks that have stopped."""
        if self.ahead:
            torch.logical_not(self.active, out=self.stopped)
        for block, (z_block, p) in enumerate(zip(self.split(z), self.p_blocks, strict=True)):
            if self.moves[block]:
                torch.addcmul(z_block, p, self.betas[block], out=p)
                if self.ahead:
                    p.masked_fill_(self.stops[block], 0.0)
