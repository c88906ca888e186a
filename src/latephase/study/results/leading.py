"""Who leads, and who cannot be told apart from the leader: paired differences with intervals. Imports no torch.

Intervals are Student's, of the paired differences to the leader, at `LEVEL` for all rows of a table together
(Bonferroni's correction). The best one is then among those that cannot be told apart from the leader with at least that
confidence, although the leader was picked from the same runs: where all comparisons with the truly best one hold,
the truly best one is not found to be behind (Hsu 1984, "Constrained simultaneous confidence intervals for multiple
comparisons with the best"). Differences that are far from normal can be covered less often.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ...student import student_quantile
from .measures import Measure
from .statistics import LEVEL

ENOUGH = 3
"""So many pairs at least, below which an interval would say more of its assumptions than of the runs."""

Blocks = Mapping[str, Mapping[int, float]]
"""By name, the value of each seed (or of each problem); infinite or not a number where a run failed."""


@dataclass(frozen=True)
class Place:
    """A row of a table with a leader.

    Attributes:
        name: of the strategy.
        pairs: in how many seeds both it and the leader have a finite value.
        failed: how many of its values are not finite.
        behind: how far it is behind the leader: the mean paired difference in the measure's unit or, where
            `Table.is_ratio`, the geometric mean of the paired ratios. None without a pair; of the leader 0, or 1.
        interval: of that; None for fewer than `ENOUGH` pairs, and of the leader.
        leads: whether it is the leader.
        neutral: what `behind` is where there is no difference: 0, or 1 of a ratio.
    """

    name: str
    pairs: int
    failed: int
    behind: float | None
    interval: tuple[float, float] | None
    leads: bool
    neutral: float

    @property
    def is_apart(self) -> bool | None:
        """Whether it is told apart from the leader; None where that is not known."""
        if self.interval is None:
            return None
        return not self.interval[0] <= self.neutral <= self.interval[1]

    @property
    def verdict(self) -> str:
        """The outcome in a few words."""
        if self.leads:
            return "first"
        if self.is_apart is None:
            return "runs failed" if self.failed else "too few seeds"
        if not self.is_apart:
            return "cannot be told apart"
        return "behind" if self.behind is not None and self.behind > self.neutral else "ahead"


@dataclass(frozen=True)
class Table:
    """The places of all, the leader first; `is_ratio` says whether they are in multiples of the leader."""

    measure: Measure
    is_ratio: bool
    places: tuple[Place, ...]

    def place(self, name: str) -> Place:
        """The place of a name."""
        return next(place for place in self.places if place.name == name)

    @property
    def alike(self) -> list[str]:
        """Names that cannot be told apart from the leader, it left out."""
        return [place.name for place in self.places if place.is_apart is False]

    @property
    def is_known(self) -> bool:
        """Whether anything is known of how sure the order is."""
        return any(place.is_apart is not None for place in self.places)

    def text(self, number: float) -> str:
        """Write how far something is behind, without its unit."""
        return times_text(number) if self.is_ratio else self.measure.signed(number)

    @property
    def unit(self) -> str:
        """The unit of `text`."""
        return "times" if self.is_ratio else "pp" if self.measure.is_share else ""


def leading(blocks: Blocks, measure: Measure, order: Sequence[str], *, multiples: bool | None = None) -> Table:
    """Compare all with the leader, pair by pair.

    Args:
        blocks: the values.
        measure: what they are of.
        order: the names, the leader first.
        multiples: whether differences are ratios. Default: where lower is better and all finite values are positive, so
            that a loss which falls by orders of magnitude is compared on that scale.
    """
    finite = [value for row in blocks.values() for value in row.values() if math.isfinite(value)]
    if multiples is None:
        multiples = not measure.is_share and not measure.higher_is_better and min(finite, default=0.0) > 0
    leader = blocks[order[0]] if order else {}
    found = []
    for name in order:
        row = blocks[name]
        failed = sum(not math.isfinite(value) for value in row.values())
        both = [(leader[seed], row[seed]) for seed in row if seed in leader]
        pairs = [(ours, theirs) for ours, theirs in both if math.isfinite(ours) and math.isfinite(theirs)]
        gaps = [
            math.log(theirs) - math.log(ours) if multiples else measure.lead(ours, theirs) for ours, theirs in pairs
        ]
        is_first = name == order[0]
        middle = fmean(gaps) if gaps else None
        interval = None if is_first else interval_of(gaps, len(order) - 1)
        if multiples:
            middle = None if middle is None else times(middle)
            interval = None if interval is None else (times(interval[0]), times(interval[1]))
        found.append(Place(name, len(pairs), failed, middle, interval, is_first, 1.0 if multiples else 0.0))
    return Table(measure, multiples, tuple(found))


def interval_of(differences: Sequence[float], comparisons: int) -> tuple[float, float] | None:
    """Student's interval of a mean difference, wide enough for so many comparisons together.

    Args:
        differences: finite, one for each pair.
        comparisons: how many intervals are to hold together at `LEVEL`.

    Returns:
        Lower and upper end; None for fewer than `ENOUGH` differences.
    """
    if len(differences) < ENOUGH:
        return None
    quantile = -student_quantile(len(differences) - 1, (1 - LEVEL) / (2 * max(1, comparisons)))
    middle, width = fmean(differences), quantile * stdev(differences) / math.sqrt(len(differences))
    return middle - width, middle + width


def times(log: float) -> float:
    """The ratio of a logarithm; infinity where that is too large for a number."""
    return math.exp(log) if log < 700 else math.inf


def times_text(ratio: float) -> str:
    """Write a ratio with two digits of what it differs from one by, and no fewer than two decimals."""
    if not math.isfinite(ratio):
        return "∞"
    if 0.1 < ratio < 10:
        away = abs(ratio - 1)
        decimals = 2 if away >= 0.1 or away == 0 else min(6, 1 - math.floor(math.log10(away)))
        return f"{ratio:.{decimals}f}"
    if 1e-3 <= ratio < 1e6:
        return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"
    mantissa, exponent = f"{ratio:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")
