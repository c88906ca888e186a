"""Preconditioned conjugate gradients with a warm start, per-block inner products and stored iterates."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .backtracking import iteration_grid
from .graphed_call import GraphedCall
from .iteration import Iteration
from .result import CGResult, Ending
from .reweighing import Reweighing
from .stopping import ModelHistory

STOPPING = ("martens", "residual")
NONPOSITIVE_CURVATURE = ("truncate", "ignore", "absolute")


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
    check_every: int | None = None,
    capture: bool = False,
    iterates_device: torch.device | str | None = None,
    second: tuple[Callable[[Tensor], Tensor], Tensor] | None = None,
) -> CGResult:
    """Solve A x = b approximately by preconditioned conjugate gradients (Nocedal and Wright 2006, Algorithm 5.3).

    Every inner product is taken per block and gives one step size per block, so that a block-diagonal A is solved as
    independent systems side by side, each with its own stopping; a full matrix is the case of one block. A block that
    has stopped stays still, its part of the vectors handed to `matvec` being zero.

    The iterations run on the device of `b` without waiting for it: steps and stops are decided there, and the host
    looks now and then whether all blocks have stopped. When it looks changes no number but `products`.

    Args:
        matvec: v [P] -> A v [P], symmetric. Block-diagonal if there are several blocks.
        b: right-hand side [P]. Computation is in its dtype, in float32 where that is narrower. Not modified.
        x0: start [P]. Default zero. Not modified.
        preconditioner: r [P] -> M^-1 r [P], symmetric positive definite and, with several blocks, block-diagonal.
        max_iter: cap on iterations. Default 250 (Martens 2010).
        stopping: "martens": with k = max(10, i/10) and the model's values m_i, when i > k, m_{i-k} < 0 and
            (m_i - m_{i-k}) / m_i < k * tolerance (Martens 2010, Section 4.4); or "residual": when
            |r| <= tolerance * |b| (Nocedal and Wright 2006, Section 7.1).
        tolerance: relative progress per iteration, or |r|/|b|, according to `stopping`; one number, or one per block.
        block_sizes: sizes of the consecutive blocks, summing to P. Default one block.
        nonpositive_curvature: what follows when p'Ap <= 0: "truncate" keeps the last iterate, or takes M^-1 b where
            there is none better than zero (Nocedal and Wright 2006, Algorithm 7.1); "absolute" goes on with |p'Ap|
            (as saddle-free Newton does, Dauphin et al. 2014); "ignore" goes on with p'Ap as it is.
        rescale_x0: replace a start with m(x0) > 0 by its best multiple b'x0 / (x0'A x0), or by zero where no positive
            multiple helps. Free of cost, since A x0 is needed anyway. Default False, plain conjugate gradients.
        share: applied to the small tensors of scalars on which branches are taken, so that ranks which hold the same
            vectors up to rounding branch alike; tensor -> tensor, without reading it. Default none.
        check_every: iterations between looks; up to check_every - 1 products are spent after the last block stopped.
            Default 1 on a CPU, where looking is free, and 10 elsewhere.
        capture: on CUDA, capture an iteration as a graph once the first few have run, and replay it. `matvec`,
            `preconditioner` and `share` must then enqueue the same work at every call and read nothing back; where that
            fails, the run goes on without a graph, and a warning says why. A product that differentiates through a
            graph of its own needs the stream on which that was recorded: call from there, and not from the default
            stream. Ignored on other devices. Default False.
        iterates_device: where the iterates live, "cpu" to spare an accelerator's memory; `solution` stays on the device
            of `b`. Default that device.
        second: matvec and right-hand side of a second quadratic model. The directions are then those of the first
            model, while the iterates and their model values are the second's (`Reweighing`), at one product with the
            second matrix per iteration. Default none.

    Returns:
        Iterates on the grid 1, 2, 3, 4, 5, 7, ... (see `iteration_grid`), their model values, and a status per block.

    Raises:
        ValueError: an unknown option, max_iter or check_every < 1, shapes that do not fit, an integer right-hand side,
            or a preconditioner that shows itself not positive definite.
    """
    x0 = None if x0 is None else x0.detach()
    sizes, tolerances = _checked(b, x0, max_iter, stopping, tolerance, block_sizes, nonpositive_curvature)
    if second is not None and second[1].shape != b.shape:
        raise ValueError(f"the second b has shape {tuple(second[1].shape)}, b has {tuple(b.shape)}; they must be equal")
    check_every = _checked_interval(check_every, b.device)
    capture = capture and b.device.type == "cuda"
    wide = torch.promote_types(b.dtype, torch.float32)
    history = ModelHistory(max_iter, tolerances, b.device)
    reweighing = None
    if second is not None:
        identity = share or (lambda scalars: scalars)
        reweighing = Reweighing(second[0], second[1].detach().to(wide), sizes, identity, history.values.dtype)
    run = Iteration(
        matvec,
        b.detach().to(wide),
        sizes,
        preconditioner,
        nonpositive_curvature,
        share,
        history=history,
        residual_tolerances=tolerances if stopping == "residual" else None,
        ahead=capture or check_every > 1,
        reweighing=reweighing,
    )
    products = run.start(x0, rescale_x0)
    advance = GraphedCall(run.advance, b.device) if capture else run.advance  # a graph lives until all is read
    device = b.device if iterates_device is None else torch.device(iterates_device)
    iterations, kept, reweighed = _iterated(run, advance, max_iter, check_every, device)
    return Ending(run, x0, kept, products + iterations).result(device, reweighed)


def _iterated(
    run: Iteration, advance: Callable[[], None], max_iter: int, check_every: int, device: torch.device
) -> tuple[int, list[tuple[int, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Advance for as long as a block moves.

    Returns:
        How many iterations that took; of those on the grid the iterates, by number; and beside each of them iterate and
        values of the second model, where there is one.
    """
    grid, reweighing = set(iteration_grid(max_iter)), run.reweighing
    kept: list[tuple[int, Tensor]] = []
    reweighed: list[tuple[Tensor, Tensor]] = []
    iteration, moving = 0, run.look()
    while moving and iteration < max_iter:
        iteration += 1
        advance()
        if iteration % check_every == 0:
            moving = run.look()
        if moving and iteration in grid and iteration < max_iter:
            kept.append((iteration, _copy(run.x, device)))
            if reweighing is not None:
                reweighed.append((_copy(reweighing.x, device), reweighing.values.clone()))
    return iteration, kept, reweighed


def _copy(x: Tensor, device: torch.device) -> Tensor:
    """A copy on a device, on the host without waiting for it."""
    waits = not (x.is_cuda and device.type == "cpu")
    copy = torch.empty(x.shape, dtype=x.dtype, device=device, pin_memory=not waits)
    return copy.copy_(x, non_blocking=not waits)


def _checked_interval(check_every: int | None, device: torch.device) -> int:
    """Iterations between looks at the device."""
    if check_every is None:
        return 1 if device.type == "cpu" else 10
    if check_every < 1:
        raise ValueError(f"check_every must be at least 1, got {check_every}")
    return check_every


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
