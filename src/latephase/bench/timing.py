"""Interleaved timing: every candidate once per round, in rotating order, and ratios within a round."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DROPPED = 2
"""Rounds that do not count, at the start."""


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    rounds: int,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each candidate once per round; each round begins with another one.

    So whatever else the machine does in the meantime falls on all candidates alike.

    Args:
        candidates: what to time, by name.
        rounds: how many count; `DROPPED` more come first.
        synchronize: waits for the device; called before each reading of the clock.
        clock: () -> seconds.

    Returns:
        Seconds of each candidate, round by round.
    """
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-DROPPED, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            synchronize()
            start = clock()
            candidates[name]()
            synchronize()
            if turn >= 0:
                times[name].append(clock() - start)
    return times


def summarize(seconds: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Median seconds, and median and quartiles of the ratio to `base`, both taken round by round."""
    ratios = [own / other for own, other in zip(seconds, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"seconds": statistics.median(seconds), "ratio": middle, "quartiles": [low, high]}
