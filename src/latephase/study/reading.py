"""A reading of a study in plain words, computed from its scores and step reports. Imports no torch.

Strategies are compared by their mean over the seeds. The spread of two strategies is the larger of their two ranges
(largest minus smallest value over the seeds): with the few seeds of a study this is a plain yardstick, not a test of
significance, and the sentences say no more than that.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from .results import Results, Run, Strategy, finite, finite_values
from .score import Score, Summary, summarize

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Metric:
    """A metric that strategies are compared by: a field of `Score`, its name for readers, and which way is better."""

    field: str
    name: str
    smaller_is_better: bool

    @property
    def evaluation(self) -> str:
        """The key of the metric in an evaluation row."""
        return self.field.removeprefix("best_")

    @property
    def title(self) -> str:
        """How the best mean is called."""
        return f"{'Lowest' if self.smaller_is_better else 'Highest'} mean {self.name}"

    def lead(self, ours: Summary, theirs: Summary) -> float:
        """How far the mean of ``ours`` is better than that of ``theirs``; negative where it is worse."""
        return theirs.mean - ours.mean if self.smaller_is_better else ours.mean - theirs.mean

    def value(self, number: float) -> str:
        """Write a value of the metric."""
        return loss_text(number) if self.smaller_is_better else percent_text(number)

    def difference(self, number: float) -> str:
        """Write the size of a difference of two values of the metric, without its unit."""
        number = abs(number)
        if not self.smaller_is_better:
            return f"{100 * number:.2f}"
        return f"{number:.0f}" if number >= 100 or number == 0 else f"{number:#.2g}".rstrip(".")

    @property
    def unit(self) -> str:
        """The unit of a difference, with a space before it."""
        return "" if self.smaller_is_better else " percentage points"


METRICS = (
    Metric("best_train_loss", "train loss", True),
    Metric("best_test_loss", "test loss", True),
    Metric("best_test_accuracy", "test accuracy", False),
)


@dataclass(frozen=True)
class Finding:
    """One thing that came out: what is compared, and a sentence or two on it."""

    title: str
    text: str


@dataclass(frozen=True)
class StepSummary:
    """What the Hessian-free steps of one strategy from one checkpoint did, over all its runs."""

    strategy: Strategy
    steps: float
    accepted: float
    cg_iterations: float
    damping: tuple[float, float] | None
    stopped_by: str


class Reading:
    """The comparisons of one study, in sentences; computed once from results and scores.

    Args:
        results: The study's results.
        scores: Its scores, as `latephase.study.score.score_results` gives them.
    """

    def __init__(self, results: Results, scores: Sequence[Score]):
        self.results = results
        self._summaries = {metric.field: summarize(scores, metric.field) for metric in METRICS}
        self.constant = constant_strategy(results)

    def summary(self, metric: Metric, epoch: int, strategy: Strategy) -> Summary | None:
        """Return the summary over the seeds, or None where no run has concluded."""
        return self._summaries[metric.field].get((epoch, strategy.name))

    def ranking(self, metric: Metric, epoch: int) -> list[tuple[Strategy, Summary]]:
        """Return the strategies with a concluded run from a checkpoint, best mean first (ties: as planned)."""
        rows = [(strategy, self.summary(metric, epoch, strategy)) for strategy in self.results.plan.strategies]
        known = [(strategy, summary) for strategy, summary in rows if summary]
        return sorted(known, key=lambda row: row[1].mean if metric.smaller_is_better else -row[1].mean)

    def headlines(self) -> list[Finding]:
        """Return the outcome of the whole study: who leads in each metric, and how Hessian-free stands."""
        lines = []
        for metric in METRICS:
            leaders: dict[str, list[int]] = {}
            for epoch in self.results.plan.checkpoints:
                if ranking := self.ranking(metric, epoch):
                    leaders.setdefault(ranking[0][0].label, []).append(epoch)
            if leaders:
                parts = [f"“{label}” ({epochs_text(epochs)})" for label, epochs in leaders.items()]
                lines.append(Finding(metric.title, f"{'; '.join(parts)}."))
        return lines + self._hessian_free_headlines()

    def compare(self, epoch: int) -> list[Finding]:
        """Return a finding per metric on the runs from one checkpoint."""
        return [Finding(metric.title, text) for metric in METRICS if (text := self._compare(metric, epoch))]

    def steps(self, epoch: int) -> list[StepSummary]:
        """Return what Hessian-free did from one checkpoint, a row per strategy with at least one step."""
        strategies = [strategy for strategy in self.results.plan.strategies if strategy.is_hessian_free]
        rows = [(strategy, self.results.concluded(epoch, strategy)) for strategy in strategies]
        return [summarize_steps(strategy, runs) for strategy, runs in rows if any(run.steps for run in runs)]

    def _hessian_free_headlines(self) -> list[Finding]:
        first = [strategy.label for strategy in self.results.plan.strategies if not strategy.is_hessian_free]
        if len(first) in (0, len(self.results.plan.strategies)):
            return []
        opponents: list[tuple[str, Strategy | None]] = [("the best first-order strategy", None)]
        if self.constant and len(first) > 1:
            opponents.append((f"the unchanged learning rate (“{self.constant.label}”)", self.constant))
        tallies = [(f"Hessian-free against {name}", self._tally(strategy)) for name, strategy in opponents]
        return [Finding(title, text) for title, text in tallies if text]

    def _tally(self, opponent: Strategy | None) -> str:
        """Count the checkpoints where the best Hessian-free mean beats a first-order strategy, or the best of them."""
        parts = []
        for metric in METRICS:
            wins = clear = total = 0
            for epoch in self.results.plan.checkpoints:
                second, first = self._best_of_each(metric, epoch, opponent)
                if second is None or first is None:
                    continue
                total += 1
                wins += metric.lead(second[1], first[1]) > 0
                clear += is_clear(metric, second[1], first[1])
            if not total:
                return ""
            share = f" (clearly at {clear or 'none'})" if wins else ""
            parts.append(f"in {metric.name} at {wins} of {total} checkpoint{'s'[: total > 1]}{share}")
        return f"the best Hessian-free strategy is ahead {', '.join(parts[:-1])} and {parts[-1]}."

    def _best_of_each(
        self, metric: Metric, epoch: int, opponent: Strategy | None = None
    ) -> tuple[tuple[Strategy, Summary] | None, tuple[Strategy, Summary] | None]:
        """The best Hessian-free strategy and its opponent: the one given, or the best first-order strategy."""
        ranking = self.ranking(metric, epoch)
        second = next((row for row in ranking if row[0].is_hessian_free), None)
        first = (row for row in ranking if not row[0].is_hessian_free and opponent in (None, row[0]))
        return second, next(first, None)

    def _compare(self, metric: Metric, epoch: int) -> str:
        ranking = self.ranking(metric, epoch)
        if not ranking:
            return ""
        leader, best = ranking[0]
        start = self.results.checkpoint(epoch)[metric.evaluation]
        text = f"“{leader.label}”, {metric.value(best.mean)} (the checkpoint itself: {metric.value(start)})."
        if math.isclose(best.mean, start, rel_tol=1e-6):  # the same state, evaluated a second time
            return f"{text} No strategy improved on the checkpoint."
        said = {leader.name}
        if len(ranking) > 1:
            text += f" Next: “{ranking[1][0].label}”, {_behind(metric, best, ranking[1][1])}."
            said.add(ranking[1][0].name)
        if leader == self.constant:
            text += " The leader is the unchanged learning rate: no change of strategy paid off here."
        for strategy, summary in ranking:
            if strategy == self.constant and strategy.name not in said:
                text += f" The unchanged learning rate (“{strategy.label}”) is {_behind(metric, best, summary)}."
                said.add(strategy.name)
        second, first = self._best_of_each(metric, epoch)
        if second and first and not {second[0].name, first[0].name} <= said:
            behind, ahead = (second, first) if leader == first[0] else (first, second)
            text += f" The best {_order(behind[0])} strategy, “{behind[0].label}”, is "
            text += f"{_behind(metric, ahead[1], behind[1])}."
        return text


def constant_strategy(results: Results) -> Strategy | None:
    """Return the first strategy that keeps the training's learning rate over the whole budget, or None.

    It is found by its evaluation rows, not by its name: every learning rate of its concluded runs equals that of the
    training.
    """
    lr = finite(results.training_status.get("lr")) or finite(results.plan.training.get("lr"))
    for strategy in results.plan.strategies:
        runs = [run for run in results.runs if run.strategy == strategy and run.concluded]
        rates = [rate for run in runs for rate in finite_values(run.evaluations, "lr")]
        if lr and rates and not strategy.is_hessian_free and all(abs(rate - lr) <= 1e-6 * lr for rate in rates):
            return strategy
    return None


def summarize_steps(strategy: Strategy, runs: Sequence[Run]) -> StepSummary:
    """Summarise the step reports of a strategy's runs from one checkpoint.

    Args:
        strategy: A Hessian-free strategy.
        runs: Its runs, at least one of them with a step.

    Returns:
        Mean number of steps per run; over the steps of all runs: share accepted, median number of CG iterations (with
        several blocks the largest of a step, as one loop serves all blocks), smallest and largest damping used, and how
        often CG stopped for which reason.
    """
    steps = [step for run in runs for step in run.steps]
    iterations = [_list(step.get("cg_iterations")) for step in steps]
    damping = finite_values(steps, "damping")
    reasons = Counter(str(status).replace("_", " ") for step in steps for status in _list(step.get("cg_status")))
    total = reasons.total()
    return StepSummary(
        strategy=strategy,
        steps=fmean(len(run.steps) for run in runs),
        accepted=fmean(bool(step.get("accepted")) for step in steps),
        cg_iterations=median(max(counts) for counts in iterations if counts) if any(iterations) else 0,
        damping=(min(damping), max(damping)) if damping else None,
        stopped_by=", ".join(f"{reason} {count / total:.0%}" for reason, count in reasons.most_common()),
    )


def spread(first: Summary, second: Summary) -> float:
    """Return the larger of the ranges over the seeds of two strategies."""
    return max(first.range, second.range)


def is_clear(metric: Metric, ours: Summary, theirs: Summary) -> bool:
    """Whether ours is better by more than the spread over the seeds, which takes at least two seeds of each."""
    return min(ours.n, theirs.n) > 1 and metric.lead(ours, theirs) > spread(ours, theirs)


def number_word(number: int) -> str:
    """Write a small count as a word."""
    return _NUMBERS[number] if 0 <= number < len(_NUMBERS) else str(number)


def loss_text(number: float) -> str:
    """Write a loss with four significant digits."""
    return f"{number:#.4g}".rstrip(".")


def percent_text(number: float) -> str:
    """Write a fraction as a percentage with two decimals."""
    return f"{100 * number:.2f}%"


def duration_text(seconds: float) -> str:
    """Write a duration in the units that a reader would choose."""
    if seconds < 120:
        digits = 2 if seconds < 10 else 1
        return f"{seconds:.{digits}f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min {rest}\u00a0s"


def _list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _order(strategy: Strategy) -> str:
    return "Hessian-free" if strategy.is_hessian_free else "first-order"


def _series(items: Sequence[object]) -> str:
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def epochs_text(epochs: Sequence[int]) -> str:
    """Write the epochs of checkpoints, such as "epochs 40 and 200"."""
    return f"epoch{'s'[: len(epochs) > 1]} {_series(epochs)}"


def _behind(metric: Metric, best: Summary, other: Summary) -> str:
    lead, width = metric.lead(best, other), metric.difference(spread(best, other))
    if lead == 0:
        return "level with it"
    text = f"{metric.difference(lead)}{metric.unit}"
    if min(best.n, other.n) < 2:
        return f"behind by {text} (one seed, so no spread is known)"
    if is_clear(metric, best, other):
        return f"clearly behind, by {text} (spread {width})"
    return f"behind by {text}, within the spread ({width})"
