"""What comes out of a suite's scores: who is best where, by how much, and the verdict in words. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..results import number_word
from .scores import Case, SuiteScores

FACTORS = (10.0, 2.0)
"""How far the best strategy may be ahead of the baseline, the first that holds anywhere being told."""
PROFILE_TAUS = (1.0, 1.5, 2.0, 10.0, 100.0)
"""At which the profile is told in numbers."""


def name_of(case: Case, scores: SuiteScores) -> str:
    """What a row is called: its folder, and the epoch where a problem has several checkpoints."""
    several = sum(other.folder == case.folder for other in scores.cases) > 1
    return f"{case.folder}, epoch {case.epoch}" if several else case.folder


def gap(case: Case, value: float) -> float:
    """What is left of a value to the best that could be: the value itself, of an accuracy the share of errors.

    It is not a number where that is not known, as for a negative loss or another metric of which more is better.
    """
    if case.measured.is_share and case.higher_is_better:
        return 1.0 - value if math.isfinite(value) else math.inf
    return math.nan if case.higher_is_better or value < 0 else value


def best_of(case: Case) -> list[str]:
    """The strategies with the best finite median; several where they are equal."""
    found = {name: middle for name in case.values if (middle := case.median(name)) is not None}
    known = {name: middle for name, middle in found.items() if math.isfinite(middle)}
    if not known:
        return []
    best = case.measured.choose(list(known.values()))
    return [name for name, middle in known.items() if middle == best]


def within_spread(case: Case) -> list[str]:
    """The other strategies whose median lies between the smallest and the largest value of a best one."""
    best = best_of(case)
    spreads = [[number for number in case.numbers(name) if math.isfinite(number)] for name in best]
    return [
        name
        for name in case.values
        if name not in best
        and (middle := case.median(name)) is not None
        and any(min(numbers) <= middle <= max(numbers) for numbers in spreads)
    ]


def ratios(scores: SuiteScores) -> dict[str, list[float]]:
    """By strategy, its median gap in multiples of the best one's, over the cases where all gaps are known.

    Infinite where a strategy failed or diverged in half of its runs or more.
    """
    names = [strategy.name for strategy in scores.strategies]
    found: dict[str, list[float]] = {name: [] for name in names}
    for case in scores.cases:
        row = ratios_of(case)
        if row.keys() >= set(names):
            for name in names:
                found[name].append(row[name])
    return found


def ratios_of(case: Case) -> dict[str, float]:
    """By strategy, its median gap in multiples of the best one's; nothing where gaps are not known."""
    medians = {name: middle for name in case.values if (middle := case.median(name)) is not None}
    gaps = {name: gap(case, middle) for name, middle in medians.items()}
    best = min(gaps.values(), default=math.nan)
    if any(map(math.isnan, gaps.values())) or not math.isfinite(best):
        return {}
    return {name: each / best if best else 1.0 if each == 0 else math.inf for name, each in gaps.items()}


@dataclass(frozen=True)
class Standing:
    """A strategy over all problems.

    Attributes:
        name: its name.
        wins: rows of the table on which its median is the best one.
        close: rows on which it lies within the spread of the best.
        ratios: its medians in multiples of the best one.
        median_ratio: of these; None where there are none.
        worst: the row on which it is furthest behind, and how far; None where that is not known.
        failed: runs that failed.
        diverged: runs that diverged.
        ended: runs that came to their end.
    """

    name: str
    wins: int
    close: int
    ratios: list[float]
    median_ratio: float | None
    worst: tuple[str, float] | None
    failed: int
    diverged: int
    ended: int


def standings(scores: SuiteScores) -> list[Standing]:
    """The strategies, most wins first; of equally many, the one with the lower median ratio."""
    multiples = ratios(scores)
    rows = [_standing(scores, strategy.name, multiples[strategy.name]) for strategy in scores.strategies]
    return sorted(rows, key=lambda row: (-row.wins, math.inf if row.median_ratio is None else row.median_ratio))


def _standing(scores: SuiteScores, name: str, multiples: list[float]) -> Standing:
    ended = [value for case in scores.cases for value in case.ended(name)]
    behind = {name_of(case, scores): row[name] for case in scores.cases if name in (row := ratios_of(case))}
    worst = max(behind, key=lambda each: behind[each], default=None)
    return Standing(
        name=name,
        wins=sum(name in best_of(case) for case in scores.cases),
        close=sum(name in within_spread(case) for case in scores.cases),
        ratios=multiples,
        median_ratio=median(multiples) if multiples else None,
        worst=None if worst is None else (worst, behind[worst]),
        failed=sum(value.status == "failed" for value in ended),
        diverged=sum(value.status == "diverged" for value in ended),
        ended=len(ended),
    )


def verdict(scores: SuiteScores) -> list[str]:
    """The outcome in sentences: who is best on how many problems, how far ahead of the baseline, and who is next."""
    rows = standings(scores)
    leaders = [row for row in rows if row.wins and row.wins == rows[0].wins]
    if not leaders:
        return ["No run has come to a finite end yet."]
    total, label = sum(bool(best_of(case)) for case in scores.cases), scores.label
    measures = {case.measured for case in scores.cases}
    what = f"the {_best_word(scores)} median {measures.pop().name}" if len(measures) == 1 else "the best median score"
    who = " and ".join(f"“{label(row.name)}”" for row in leaders)
    each, verb = ("", "has") if len(leaders) == 1 else (" each,", "have")
    lines = [f"On {leaders[0].wins} of {total} {_rows_word(scores)}{each} {who} {verb} {what}"]
    lines[0] += f"; {ahead}." if len(leaders) == 1 and (ahead := _ahead(scores, leaders[0])) else "."
    if len(leaders) == 1 and leaders[0].close:
        lines[0] += f" On {leaders[0].close} more it lies within the spread of the best."
    if len(leaders) == 1 and (worst := leaders[0].worst) and worst[1] > 1:
        lines.append(f"It is furthest behind on {worst[0]}: {_times(worst[1])}.")
    rest = [f"“{label(row.name)}” on {row.wins}" for row in rows if row.wins and row not in leaders]
    if rest:
        lines.append(f"Best elsewhere: {', '.join(rest)}.")
    return lines


def _rows_word(scores: SuiteScores) -> str:
    several = len({case.folder for case in scores.cases}) < len(scores.cases)
    word = "checkpoint" if several else "problem"
    return word if len(scores.cases) == 1 else f"{word}s"


def _best_word(scores: SuiteScores) -> str:
    return "highest" if scores.cases[0].higher_is_better else "lowest"


def _times(ratio: float) -> str:
    if not math.isfinite(ratio):
        return "half of its runs or more failed or diverged"
    return f"{ratio:.3g} times the best" if ratio < 1000 else f"{ratio:,.0f} times the best"


def _ahead(scores: SuiteScores, leader: Standing) -> str:
    """On how many rows the leader is far ahead of the baseline; of the next one, where it is the baseline itself."""
    others = [row.name for row in standings(scores) if row.name != leader.name]
    if not others:
        return ""
    other = scores.baseline if scores.baseline != leader.name else others[0]
    rows = [ratios_of(case) for case in scores.cases]
    known = [(row[leader.name], row[other]) for row in rows if {leader.name, other} <= row.keys()]
    for factor in FACTORS:
        if count := sum(ours * factor <= theirs and ours < theirs for ours, theirs in known):
            shares = all(case.measured.is_share for case in scores.cases)
            what = "its share of errors is" if shares else "it is"
            return f"on {count} {what} at least {number_word(int(factor))} times below “{scores.label(other)}”"
    count = sum(ours < theirs for ours, theirs in known)
    return f"on {count} it is ahead of “{scores.label(other)}”, nowhere twice" if count else ""


@dataclass(frozen=True)
class Group:
    """Problems of one kind: how many, and who is best on how many of them."""

    kind: str
    cases: int
    wins: list[tuple[str, int]]


def groups(scores: SuiteScores) -> list[Group]:
    """The problems by the kind that the suite says they are of; none where it says nothing."""
    kinds = dict.fromkeys(case.kind for case in scores.cases)
    if set(kinds) <= {""}:
        return []
    return [_group(kind, [case for case in scores.cases if case.kind == kind], scores) for kind in kinds]


def _group(kind: str, cases: Sequence[Case], scores: SuiteScores) -> Group:
    wins = [(strategy.label, sum(strategy.name in best_of(case) for case in cases)) for strategy in scores.strategies]
    return Group(kind or "other", len(cases), sorted((row for row in wins if row[1]), key=lambda row: -row[1]))
