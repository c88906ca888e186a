"""The statistics of a study: intervals, paired tests, performance profiles, speed-up. Plain numbers in and out.

With the few seeds of a study these say what they can and no more: a sign-flip test of n pairs has no p below 2^(1-n),
and a bootstrap interval of five values is narrower than it should be.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np

LEVEL = 0.95
"""Of the intervals; one minus it is the level of the tests."""

RESAMPLES = 10_000
"""Of the bootstrap, and random sign flips where all of them would be too many: enough for two digits."""

EXACT_PAIRS = 12
"""Up to so many pairs all 2^n sign flips are tried, at most 4,096."""

PROFILE_LIMIT = 4.0
"""Performance profiles end at four times the best time, as in AlgoPerf."""

Times = Mapping[Any, Mapping[str, float]]
"""Time to target per case (such as a problem and a checkpoint) and strategy; infinity where it was missed."""


def bootstrap_interval(values: Sequence[float], statistic: Literal["median", "mean"]) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of a median or mean at `LEVEL` (Efron 1979).

    The seed is fixed: the same values give the same interval. Its ends are values of the resampled statistic, not
    interpolated, so that times that are infinite have a place.

    Args:
        values: The sample; infinity is allowed, not-a-number is not.
        statistic: "median" or "mean".

    Returns:
        Lower and upper end, or None for fewer than two values, of which no spread is known.
    """
    if len(values) < 2:
        return None
    sample = np.asarray(values, dtype=float)
    drawn = sample[np.random.default_rng(0).integers(len(sample), size=(RESAMPLES, len(sample)))]
    found = np.median(drawn, axis=1) if statistic == "median" else drawn.mean(axis=1)
    tail = (1 - LEVEL) / 2
    lower, upper = np.quantile(found, [tail, 1 - tail], method="inverted_cdf").tolist()
    return lower, upper


def sign_flip_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the paired sign-flip permutation test (Fisher 1935) on the mean difference.

    Under the null hypothesis that both sides of a pair come from the same distribution, each difference is as likely
    with either sign. p is the share of the sign flips whose mean is at least as far from zero as the one observed: of
    all flips up to `EXACT_PAIRS` pairs, beyond that of `RESAMPLES` random ones and the one observed, with a fixed seed.

    Args:
        differences: Finite differences, one per pair, in any order.

    Returns:
        p in (0, 1]; 1.0 where there is no pair or no difference.
    """
    sizes = np.sort(np.abs(np.asarray(differences, dtype=float)))
    if not sizes.any():
        return 1.0
    observed = abs(math.fsum(differences)) * (1 - 1e-9)  # sums that differ by rounding only are equal
    if len(sizes) <= EXACT_PAIRS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(sizes))))
        return float((np.abs(signs @ sizes) >= observed).mean())
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(RESAMPLES, len(sizes)))
    return float((1 + (np.abs(signs @ sizes) >= observed).sum()) / (1 + RESAMPLES))


def smallest_p(pairs: int) -> float:
    """Return the smallest p-value that `sign_flip_test` can give with so many pairs."""
    return min(1.0, 2.0 ** (1 - pairs)) if pairs <= EXACT_PAIRS else 1 / (1 + RESAMPLES)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's (1979) adjusted p-values, which control the chance of any false finding among them.

    Args:
        p_values: One per comparison.

    Returns:
        Adjusted p-values under the same keys, in the same order.
    """
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def time_ratios(times: Times) -> dict[str, list[float]]:
    """Return each strategy's times as multiples of the best time of each case.

    Args:
        times: All cases have the same strategies.

    Returns:
        Ratios of at least 1 per strategy, in the order of the cases; infinity where the strategy missed the target,
        also where all did.

    Raises:
        ValueError: The cases do not have the same strategies.
    """
    names = list(next(iter(times.values()), {}))
    found: dict[str, list[float]] = {name: [] for name in names}
    for case, row in times.items():
        if set(row) != set(names):
            raise ValueError(f"{case} has strategies {sorted(row)}, but others have {sorted(names)}")
        best = min(row.values())
        for name in names:
            found[name].append(_ratio(row[name], best))
    return found


def profile(ratios: Sequence[float], tau: float) -> float:
    """Return rho(tau), the share of the cases whose ratio is at most tau (Dolan and Moré 2002); no case: 0."""
    return sum(ratio <= tau for ratio in ratios) / len(ratios) if ratios else 0.0


def profile_score(ratios: Sequence[float]) -> float:
    """Return the mean of rho over tau from 1 to `PROFILE_LIMIT`, as in AlgoPerf; 1 is always the fastest."""
    width = PROFILE_LIMIT - 1
    return fmean(max(0.0, PROFILE_LIMIT - ratio) / width for ratio in ratios) if ratios else 0.0


@dataclass(frozen=True)
class SpeedUp:
    """How much faster a strategy reached the targets than the baseline.

    Attributes:
        factor: Geometric mean of the baseline's over the strategy's time, over the cases that both reached; above 1 is
            faster. None where there is no such case.
        both: How many cases those are.
        only_strategy: Cases that only the strategy reached.
        only_baseline: Cases that only the baseline reached.
    """

    factor: float | None
    both: int
    only_strategy: int
    only_baseline: int


def speed_up(times: Times, strategy: str, baseline: str) -> SpeedUp:
    """Return the geometric-mean speed-up of a strategy over a baseline; cases that one of them missed count apart.

    Args:
        times: Time to target per case and strategy; cases where both needed no time at all count as equal.
        strategy: A name.
        baseline: A name.
    """
    pairs = [(row[strategy], row[baseline]) for row in times.values()]
    logs = [
        math.log(_ratio(theirs, ours)) if ours or theirs else 0.0
        for ours, theirs in pairs
        if math.isfinite(ours) and math.isfinite(theirs) and bool(ours) == bool(theirs)
    ]
    return SpeedUp(
        factor=math.exp(fmean(logs)) if logs else None,
        both=len(logs),
        only_strategy=sum(math.isfinite(ours) and math.isinf(theirs) for ours, theirs in pairs),
        only_baseline=sum(math.isinf(ours) and math.isfinite(theirs) for ours, theirs in pairs),
    )


def _ratio(time: float, best: float) -> float:
    if math.isinf(time):
        return math.inf
    return time / best if best else 1.0 if time == 0 else math.inf
