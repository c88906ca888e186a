"""The strategies against the baseline: paired differences over the seeds, their intervals and tests. Imports no torch.

Runs of two strategies with the same checkpoint and seed are a pair: they start from the same state and see the data in
the same order. The tests of one question (a measure, at one checkpoint or over all) are corrected together by Holm's
method over the strategies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from .load import Results, Strategy
from .measures import Measure
from .score import Score, relative_values
from .statistics import LEVEL, bootstrap_interval, holm, sign_flip_test, smallest_p


@dataclass(frozen=True)
class Comparison:
    """A strategy against the baseline in one measure.

    Attributes:
        strategy: Which one.
        pairs: How many pairs of runs.
        ahead: In how many of them the strategy is better.
        lead: Mean paired difference, positive where the strategy is better: in the measure's unit at one checkpoint, in
            relative performance (0 worst to 1 best of a checkpoint) over all of them.
        interval: Bootstrap interval of the lead; None for fewer than two pairs.
        p: Of the sign-flip test, two-sided.
        adjusted_p: After Holm's correction over the strategies compared.
        smallest: The smallest adjusted p that so many pairs and strategies can give the best of them.
    """

    strategy: Strategy
    pairs: int
    ahead: int
    lead: float
    interval: tuple[float, float] | None
    p: float
    adjusted_p: float
    smallest: float

    @property
    def is_decided(self) -> bool:
        """Whether the difference is significant at the level of 5%."""
        return self.adjusted_p <= 1 - LEVEL + 1e-12

    @property
    def verdict(self) -> str:
        """The outcome in a word or two."""
        if not self.is_decided:
            return "not decided"
        return "better" if self.lead > 0 else "worse"


def compare_at(results: Results, scores: Sequence[Score], measure: Measure, epoch: int) -> list[Comparison]:
    """Compare all strategies with the baseline at one checkpoint, by the best values within the budget.

    Returns:
        A comparison per strategy with at least one pair, in the order of the plan.
    """
    here = [row for row in scores if row.checkpoint_epoch == epoch]
    return _compare(results, here, [row.number(measure.best) or 0.0 for row in here], measure)


def compare_overall(results: Results, scores: Sequence[Score], measure: Measure) -> list[Comparison]:
    """Compare all strategies with the baseline over all checkpoints, by relative performance, every pair counting once.

    The null hypothesis is that strategy and baseline do the same at every checkpoint. What is found holds for these
    checkpoints of this one training.
    """
    return _compare(results, scores, relative_values(scores, measure), replace(measure, higher_is_better=True))


def _compare(results: Results, scores: Sequence[Score], values: Sequence[float], measure: Measure) -> list[Comparison]:
    done = {
        (row.strategy, row.checkpoint_epoch, row.seed): value
        for row, value in zip(scores, values, strict=True)
        if row.concluded
    }
    leads: dict[str, list[float]] = {}
    for (name, epoch, seed), value in done.items():
        base = done.get((results.plan.baseline, epoch, seed))
        if name != results.plan.baseline and base is not None:
            leads.setdefault(name, []).append(measure.lead(value, base))
    p_values = {name: sign_flip_test(found) for name, found in leads.items()}
    adjusted = holm(p_values)
    return [
        Comparison(
            strategy=strategy,
            pairs=len(found),
            ahead=sum(lead > 0 for lead in found),
            lead=fmean(found),
            interval=bootstrap_interval(found, "mean"),
            p=p_values[strategy.name],
            adjusted_p=adjusted[strategy.name],
            smallest=min(1.0, len(leads) * smallest_p(len(found))),
        )
        for strategy in results.plan.strategies
        if (found := leads.get(strategy.name))
    ]
