"""A reading of a study in plain words, computed from its scores. Imports no torch.

Who wins is by the mean over the seeds, how sure that is by the paired tests against the baseline
(`comparison`). Where nothing is decided the sentences say so, and what so few seeds could have decided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .comparison import Comparison, compare_at, compare_overall
from .load import Results, Strategy
from .measures import Measure, p_text
from .score import Score, Summary, summarize

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

Place = tuple[Strategy, Summary]
"""A strategy in a ranking."""


@dataclass(frozen=True)
class Finding:
    """One thing that came out: what is compared, and a sentence or two on it."""

    title: str
    text: str


class Reading:
    """The comparisons of one study, in sentences; computed once from results and scores.

    Args:
        results: The study's results.
        scores: Its scores, as `latephase.study.results.score.score_results` gives them.
    """

    def __init__(self, results: Results, scores: Sequence[Score]):
        self.results = results
        self.scores = scores
        self.baseline = results.plan.strategy(results.plan.baseline)
        self._summaries = {measure: summarize(scores, measure.best) for measure in results.measures}
        self._comparisons = {
            (measure, epoch): compare_at(results, scores, measure, epoch)
            for measure in results.measures
            for epoch in results.plan.checkpoints
        }

    def summary(self, measure: Measure, epoch: int, strategy: Strategy) -> Summary | None:
        """Return the summary over the seeds, or None where no run has concluded."""
        return self._summaries[measure].get((epoch, strategy.name))

    def ranking(self, measure: Measure, epoch: int) -> list[Place]:
        """Return the strategies with a concluded run from a checkpoint, best mean first (ties: as planned)."""
        rows = [(strategy, self.summary(measure, epoch, strategy)) for strategy in self.results.plan.strategies]
        known = [(strategy, summary) for strategy, summary in rows if summary]
        return sorted(known, key=lambda row: -row[1].mean if measure.higher_is_better else row[1].mean)

    def comparisons(self, measure: Measure, epoch: int) -> list[Comparison]:
        """Return the paired comparisons with the baseline at a checkpoint."""
        return self._comparisons[measure, epoch]

    def headlines(self) -> list[Finding]:
        """Return the outcome of the whole study: who leads in each main measure and how sure that is."""
        lines = []
        for measure in self.results.main_measures:
            leaders: dict[str, list[int]] = {}
            for epoch in self.results.plan.checkpoints:
                if ranking := self.ranking(measure, epoch):
                    leaders.setdefault(ranking[0][0].label, []).append(epoch)
            if leaders:
                parts = [f"“{label}” ({epochs_text(epochs)})" for label, epochs in leaders.items()]
                sentences = [f"{'; '.join(parts)}.", self._by_how_much(measure), self._overall(measure)]
                lines.append(Finding(measure.title, " ".join(sentence for sentence in sentences if sentence)))
        return lines + self._second_order_headlines()

    def compare(self, epoch: int) -> list[Finding]:
        """Return a finding per measure on the runs from one checkpoint."""
        found = [(measure.title, self._compare(measure, epoch)) for measure in self.results.measures]
        return [Finding(title, text) for title, text in found if text]

    def _by_how_much(self, measure: Measure) -> str:
        """How far the leader is ahead of the baseline at the last checkpoint that has both."""
        for epoch in sorted(self.results.plan.checkpoints, reverse=True):
            leader = next((place[0] for place in self.ranking(measure, epoch)), None)
            found = next((row for row in self.comparisons(measure, epoch) if row.strategy == leader), None)
            if found:
                size = f"{measure.difference(found.lead)}{measure.unit}"
                side = "ahead of" if found.lead >= 0 else "behind"
                interval = f" (95% interval {self._interval(measure, found)})" if found.interval else ""
                where = f"At epoch {epoch}" if epoch else "From the initialisation"
                return f"{where} “{found.strategy.label}” is {side} the baseline by {size}{interval}."
        return ""

    def _interval(self, measure: Measure, found: Comparison) -> str:
        return " to ".join(measure.signed(end) for end in found.interval or ())

    def _overall(self, measure: Measure) -> str:
        """The verdicts against the baseline over all checkpoints."""
        epochs = self.results.plan.checkpoints
        if len(epochs) == 1:
            found, where = self.comparisons(measure, epochs[0]), ""
        else:
            found, where = compare_overall(self.results, self.scores, measure), ", all checkpoints taken together"
        if not found:
            return ""
        start = f"Against the baseline “{self.baseline.label}”{where} ({_pairs(found)})"
        if not any(row.is_decided for row in found):
            return f"{start}, nothing is decided: {_undecided(found)}"
        parts = [_named(verdict, found) for verdict in ("better", "worse", "not decided")]
        return f"{start}: {'; '.join(part for part in parts if part)}."

    def _second_order_headlines(self) -> list[Finding]:
        """How often the best second-order strategy has the better mean than the best of the others."""
        orders = {strategy.is_second_order for strategy in self.results.plan.strategies}
        parts = []
        for measure in self.results.main_measures if len(orders) == 2 else ():
            wins = total = 0
            for epoch in self.results.plan.checkpoints:
                second, first = self._best_of_each(measure, epoch)
                if second and first:
                    total += 1
                    wins += measure.lead(second[1].mean, first[1].mean) > 0
            if total:
                parts.append(f"in {measure.name} at {wins} of {total} checkpoint{'s'[: total > 1]}")
        if not parts:
            return []
        text = f"the best second-order strategy has the better mean {series(parts)} (a count of means, not a test)."
        return [Finding("Second-order strategies against the best of the others", text)]

    def _best_of_each(self, measure: Measure, epoch: int) -> tuple[Place | None, Place | None]:
        """The best second-order strategy and the best of the others."""
        ranking = self.ranking(measure, epoch)
        second = next((row for row in ranking if row[0].is_second_order), None)
        return second, next((row for row in ranking if not row[0].is_second_order), None)

    def _compare(self, measure: Measure, epoch: int) -> str:
        ranking = self.ranking(measure, epoch)
        if not ranking:
            return ""
        leader, best = ranking[0]
        start = self.results.checkpoint(epoch)[measure.key]
        beginning = "the checkpoint itself" if epoch else "at the start"
        text = f"“{leader.label}”, {measure.value(best.mean)} ({beginning}: {measure.value(start)})."
        if math.isclose(best.mean, start, rel_tol=1e-6):  # the same state, evaluated a second time
            return f"{text} No strategy improved on {'the checkpoint' if epoch else 'the start'}."
        if len(ranking) > 1:
            text += f" Next: “{ranking[1][0].label}”, {self._behind(measure, epoch, ranking[0], ranking[1])}."
        if leader == self.baseline:
            return f"{text} The leader is the baseline{': no change of strategy paid off here' if epoch else ''}."
        found = next((row for row in self.comparisons(measure, epoch) if row.strategy == leader), None)
        return f"{text} {self._against(measure, found)}" if found else text

    def _against(self, measure: Measure, found: Comparison) -> str:
        """The leader against the baseline."""
        size = f"{measure.difference(found.lead)}{measure.unit}"
        side = "ahead" if found.lead > 0 else "behind" if found.lead < 0 else "level"
        text = f"Against the baseline “{self.baseline.label}” it is {side} by {size}"
        if not found.interval:
            return f"{text}; one pair of runs, so nothing is known of the spread."
        verdict = "significant" if found.is_decided else "not decided"
        return f"{text} (95% interval {self._interval(measure, found)}), {p_text(found.adjusted_p)}: {verdict}."

    def _behind(self, measure: Measure, epoch: int, leader: Place, other: Place) -> str:
        lead = measure.lead(leader[1].mean, other[1].mean)
        if lead == 0:
            return "level with it"
        ours, theirs = (self.by_seed(measure, epoch, place[0]) for place in (leader, other))
        seeds = ours.keys() & theirs.keys()
        wins = sum(measure.lead(ours[seed], theirs[seed]) > 0 for seed in seeds)
        text = f"behind by {measure.difference(lead)}{measure.unit}"
        return f"{text}, and behind in {wins} of {len(seeds)} pairs of runs" if len(seeds) > 1 else text

    def by_seed(self, measure: Measure, epoch: int, strategy: Strategy) -> dict[int, float]:
        """Return the best value of each concluded run of a strategy from a checkpoint, keyed by seed."""
        return {
            row.seed: row.number(measure.best) or 0.0
            for row in self.scores
            if (row.checkpoint_epoch, row.strategy) == (epoch, strategy.name) and row.concluded
        }


def number_word(number: int) -> str:
    """Write a small count as a word."""
    return _NUMBERS[number] if 0 <= number < len(_NUMBERS) else str(number)


def series(items: Sequence[object]) -> str:
    """Write a list with commas and an "and"."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def epochs_text(epochs: Sequence[int]) -> str:
    """Write the epochs of checkpoints, such as "epochs 40 and 200"; the first one alone is the initialisation."""
    if list(epochs) == [0]:
        return "from the initialisation"
    return f"epoch{'s'[: len(epochs) > 1]} {series(epochs)}"


def _pairs(found: Sequence[Comparison]) -> str:
    counts = sorted({row.pairs for row in found})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} pair{'s'[: counts[-1] > 1]} of runs"


def _named(verdict: str, found: Sequence[Comparison]) -> str:
    rows = [row for row in found if row.verdict == verdict]
    if len(rows) == len(found) > 2 and verdict != "not decided":
        largest = max(row.adjusted_p for row in rows)
        each = "each p\u00a0<\u00a00.001" if largest < 0.001 else f"each p at most {largest:.2g}"
        return f"{verdict}: all {len(rows)} other strategies ({each})"
    p = "" if verdict == "not decided" else " ({})"
    names = [f"“{row.strategy.label}”{p.format(p_text(row.adjusted_p))}" for row in rows]
    return f"{verdict}: {series(names)}" if names else ""


def _undecided(found: Sequence[Comparison]) -> str:
    """Why nothing is decided: too few pairs to decide anything, or no difference large and steady enough."""
    possible = min(row.smallest for row in found)
    if possible > 0.05:
        return f"so few pairs cannot give a p below {possible:.2g}, however large the differences are."
    return f"no difference is significant (the least corrected {p_text(min(row.adjusted_p for row in found))})."
