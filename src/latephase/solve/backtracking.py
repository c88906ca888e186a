"""Candidates along the path of conjugate gradients, and the walk back over them."""

import math
from collections.abc import Callable


def iteration_grid(last: int, base: float = 1.3) -> list[int]:
    """Iterations whose iterates are kept as candidates: the distinct ceil(base^j) up to `last`, and `last` itself.

    The spacing grows with the iteration, so that the candidates' memory grows with the logarithm of the iterations
    (Martens 2010, Section 4.6). Martens' program starts the grid at 5; the published PyTorch program subtracts one.

    Args:
        last: number of the last iteration, at least 0.
        base: ratio of neighbouring grid points. Default 1.3, as in the paper.

    Returns:
        Strictly increasing iteration numbers, `last` at the end.
    """
    if last < 1:
        return [0]
    exponents = range(math.ceil(math.log(last, base)) + 1)
    return sorted({min(math.ceil(base**j), last) for j in exponents} | {last})


def backtrack(value: Callable[[int], float], count: int, staying: float = math.inf) -> tuple[int, float]:
    """Walk back from the last candidate for as long as the loss falls, and for as long as staying would be better.

    The walk stops at the first candidate that is not better than the one after it, so most candidates are never
    evaluated (Martens 2010, Section 4.6; Martens and Sutskever 2012, Section 8.7). As long as there is none that is
    better than not moving, it goes on, over losses that are not finite too. That is ours: late in training the last
    candidates of a small batch often are worse, and a walk that ends among them would give the step away.

    Args:
        value: loss of candidate i, for i in 0 .. count - 1. Called at most once per candidate.
        count: number of candidates, at least 1.
        staying: loss f(theta) of not moving. Default infinity: every finite candidate will do.

    Returns:
        Index of the chosen candidate, the best that was evaluated, and its loss.

    Raises:
        ValueError: there is no candidate.
    """
    if count < 1:
        raise ValueError("backtracking needs at least one candidate")
    chosen, best = count - 1, value(count - 1)
    for index in range(count - 2, -1, -1):
        loss = value(index)
        better = loss < best or not math.isfinite(best)
        if not better and best < staying:
            break
        if better:
            chosen, best = index, loss
    return chosen, best
