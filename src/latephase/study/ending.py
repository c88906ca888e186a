"""Where the strategies stand when the budget ends, beside the best that they reached on the way. Imports no torch.

The best of many noisy evaluations flatters a strategy that wanders, and an L2 term may hide what the data's loss does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .reading import Finding, Metric, epochs_text
from .results import Results, Strategy
from .score import Score, Summary, summarize

MEASURES = (
    Metric("final_train_loss", "train loss", True),
    Metric("final_train_loss_without_l2", "train loss without the L2 term", True),
    Metric("final_test_loss", "test loss", True),
    Metric("final_test_accuracy", "test accuracy", False),
)


@dataclass(frozen=True)
class Ending:
    """A strategy's row: its means over the seeds, each with whether it is the best."""

    strategy: Strategy
    summaries: list[tuple[Summary, bool]]


def endings(results: Results, scores: Sequence[Score], epoch: int) -> list[Ending]:
    """Return the row of each strategy with a concluded run from a checkpoint, in the order of the plan."""
    by_measure = {measure: _at(scores, measure, epoch) for measure in MEASURES}
    best = {measure: _best(measure, summaries) for measure, summaries in by_measure.items() if summaries}
    return [
        Ending(
            strategy,
            [(by_measure[m][strategy.name], by_measure[m][strategy.name].mean == best[m]) for m in MEASURES],
        )
        for strategy in results.plan.strategies
        if strategy.name in by_measure[MEASURES[0]]
    ]


def ending_headline(results: Results, scores: Sequence[Score]) -> list[Finding]:
    """Return who leads at the end of the budget in each measure, as one finding; none where no run has concluded."""
    labels = {strategy.name: strategy.label for strategy in results.plan.strategies}
    parts = []
    for measure in MEASURES:
        leaders: dict[str, list[int]] = {}
        for epoch in results.plan.checkpoints:
            summaries = _at(scores, measure, epoch)
            for name, summary in summaries.items():
                if summary.mean == _best(measure, summaries):
                    leaders.setdefault(labels[name], []).append(epoch)
                    break
        if leaders:
            who = "; ".join(f"“{label}” ({epochs_text(epochs)})" for label, epochs in leaders.items())
            parts.append(f"{measure.title}: {who}")
    if not parts:
        return []
    return [Finding("At the end of the budget, instead of the best moment within it", f"{'. '.join(parts)}.")]


def _at(scores: Sequence[Score], measure: Metric, epoch: int) -> dict[str, Summary]:
    summaries = summarize(scores, measure.field)
    return {name: summary for (at, name), summary in summaries.items() if at == epoch}


def _best(measure: Metric, summaries: dict[str, Summary]) -> float:
    choose = min if measure.smaller_is_better else max
    return choose(summary.mean for summary in summaries.values())
