"""Where the strategies stand when the budget ends, beside the best that they reached on the way. Imports no torch.

The best of many noisy evaluations flatters a strategy that wanders, and an L2 term may hide what the data's loss does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .findings import Finding, epochs_text, series
from .load import Results, Strategy
from .measures import TRAIN_LOSS, Measure
from .reached import final_value
from .score import Score, Summary, summarize, summary_of

WITHOUT_L2 = Measure("train_loss_without_the_l2_term", False)
"""The data's part of the train loss."""


@dataclass(frozen=True)
class Ending:
    """A strategy's row: its summaries over the seeds, each with whether its mean is the best."""

    strategy: Strategy
    summaries: list[tuple[Summary, bool]]


def ending_measures(results: Results) -> tuple[Measure, ...]:
    """Return the measures of the end: train loss with and without the L2 term, test loss and metrics."""
    return TRAIN_LOSS, WITHOUT_L2, *results.measures[1:]


def endings(results: Results, scores: Sequence[Score], epoch: int) -> list[Ending]:
    """Return the row of each strategy with a concluded run from a checkpoint, in the order of the plan."""
    columns = [(measure, _at(results, scores, measure, epoch)) for measure in ending_measures(results)]
    columns = [(measure, summaries) for measure, summaries in columns if summaries]
    return [
        Ending(strategy, [(found[strategy.name], found[strategy.name].mean == _best(m, found)) for m, found in columns])
        for strategy in results.plan.strategies
        if columns and strategy.name in columns[0][1]
    ]


def ending_headline(results: Results, scores: Sequence[Score]) -> list[Finding]:
    """Return who leads at the end of the budget in each measure, as one finding; none where no run has concluded."""
    said: dict[str, list[str]] = {}
    for measure in ending_measures(results):
        leaders: dict[str, list[int]] = {}
        for epoch in results.plan.checkpoints:
            summaries = _at(results, scores, measure, epoch)
            leader = next((name for name, row in summaries.items() if row.mean == _best(measure, summaries)), None)
            if leader:
                leaders.setdefault(results.plan.strategy(leader).label, []).append(epoch)
        if leaders:
            who = "; ".join(f"“{label}” ({epochs_text(epochs)})" for label, epochs in leaders.items())
            said.setdefault(who, []).append(measure.name)
    if not said:
        return []
    parts = [f"Best mean {series(names)}: {who}" for who, names in said.items()]
    return [Finding("At the end of the budget, instead of the best moment within it", ". ".join(parts) + ".")]


def _at(results: Results, scores: Sequence[Score], measure: Measure, epoch: int) -> dict[str, Summary]:
    """The final values of a measure per strategy name."""
    if measure == WITHOUT_L2:
        found = summarize(scores, "final_train_loss_without_l2")
        return {name: summary for (at, name), summary in found.items() if at == epoch}
    start = results.checkpoint(epoch)
    groups = {strategy.name: results.concluded(epoch, strategy) for strategy in results.plan.strategies}
    return {name: summary_of([final_value(r, measure, start) for r in runs]) for name, runs in groups.items() if runs}


def _best(measure: Measure, summaries: dict[str, Summary]) -> float:
    return measure.choose([summary.mean for summary in summaries.values()])
