"""Which strategy for which problem: the first choice over all, by kind and by size, and how sure that is. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..results import Table, leading, number_word, series, times, times_text
from .scores import Case, SuiteScores
from .verdicts import best_of, ratios_of

LOST = 10_000.0
"""What counts as so many times the best at most: a failure weighs as much, and nothing outweighs all else."""
SIZES = (1_000, 10_000, 100_000, 1_000_000)
"""Numbers of parameters between which problems are of one size."""
FEW = 3
"""So many names are told; of more, only how many."""


@dataclass(frozen=True)
class Choice:
    """What to take for problems of one group.

    Attributes:
        about: "all", "kind" or "size".
        group: what its problems have in common, in words.
        cases: how many there are.
        first: name of the strategy whose medians are least behind the best ones, in the geometric mean.
        behind: so many times.
        best_on: on how many of the problems it has the best median.
        table: how the others compare with it, a pair for each problem; of a single problem a pair for each seed.
    """

    about: str
    group: str
    cases: int
    first: str
    behind: float
    best_on: int
    table: Table


def choices_of(scores: SuiteScores) -> list[Choice]:
    """The first choice for all problems, for each kind, and for each size where there are two or more.

    Problems count of which the gap of every strategy to the best that could be is known (`ratios_of`).
    """
    names = {strategy.name for strategy in scores.strategies}
    cases = [case for case in scores.cases if ratios_of(case).keys() >= names]
    kinds = dict.fromkeys(case.kind for case in cases if case.kind)
    sizes = sorted({_size_of(case) for case in cases})
    groups = [("all", "all problems", cases)]
    if len(cases) > 1:
        groups += [("kind", kind, [case for case in cases if case.kind == kind]) for kind in kinds]
        if len(sizes) > 1:
            groups += [("size", _size_text(n), [case for case in cases if _size_of(case) == n]) for n in sizes]
    return [choice_of(about, group, own) for about, group, own in groups if own]


def choice_of(about: str, group: str, cases: Sequence[Case]) -> Choice:
    """The first choice for some problems, at least one, all with the same strategies."""
    blocks = _distances(cases)
    means = {name: fmean(map(math.log, row.values())) for name, row in blocks.items()}
    order = sorted(blocks, key=lambda name: means[name])
    table = leading(blocks, cases[0].measured, order, multiples=True)
    if len(cases) == 1:
        table = by_seed(cases[0], order)
    wins = sum(order[0] in best_of(case) for case in cases)
    return Choice(about, group, len(cases), order[0], times(means[order[0]]), wins, table)


def by_seed(case: Case, order: Sequence[str]) -> Table:
    """How strategies compare on one problem, a pair for each seed; the best in front of `order`."""
    rows = {
        name: {each.seed: math.inf if each.value is None else each.value for each in case.ended(name)} for name in order
    }
    return leading(rows, case.measured, order)


def alike_of(table: Table, labels: Mapping[str, str]) -> list[str]:
    """Who cannot be told apart from the first one: names or, of many, how many; nothing where all can."""
    if not table.is_known:
        return ["not known"] if len(table.places) > 1 else []
    if len(table.alike) <= FEW:
        return [labels[name] for name in table.alike]
    return [f"{len(table.alike)} of the {len(table.places) - 1} others"]


def sentence_of(choices: Sequence[Choice], scores: SuiteScores) -> str:
    """The verdict of a suite in one sentence; names stand in “quotes”. Empty where no gaps are known."""
    if not choices:
        return ""
    whole, label = choices[0], scores.label
    if whole.cases == 1:
        said = f"“{label(whole.first)}” is the first choice for the one problem"
    else:
        said = f"“{label(whole.first)}” is the first choice for the {number_word(whole.cases)} problems together: "
        said += f"in the geometric mean {times_text(whole.behind)} times the best of each, and best on {whole.best_on}"
    said += _sureness(whole, {strategy.name: strategy.label for strategy in scores.strategies})
    found: dict[str, list[str]] = {}
    for choice in choices:
        if choice.about == "kind":
            found.setdefault(choice.first, []).append(choice.group)
    if len(found) > 1:
        said += "; by kind: " + ", ".join(f"{series(groups)} “{label(name)}”" for name, groups in found.items())
    return f"{said}."


def _sureness(choice: Choice, labels: Mapping[str, str]) -> str:
    table = choice.table
    if len(table.places) == 1:
        return ""
    if not table.is_known:
        return f"; there are too few {'seeds' if choice.cases == 1 else 'problems'} to say how sure that is"
    if not table.alike:
        return ", and is told apart from all others" if len(table.places) > 2 else ", and is told apart from the other"
    if len(table.alike) <= FEW:
        return f", but cannot be told apart from {series([f'“{labels[name]}”' for name in table.alike])}"
    return f", but cannot be told apart from {number_word(len(table.alike))} of the {len(table.places) - 1} others"


def _distances(cases: Sequence[Case]) -> dict[str, dict[int, float]]:
    """By strategy, its median in multiples of the best one, for each problem; at most `LOST`."""
    rows = [ratios_of(case) for case in cases]
    return {name: {place: min(row[name], LOST) for place, row in enumerate(rows)} for name in rows[0]}


def _size_of(case: Case) -> int:
    return sum(case.parameters >= edge for edge in SIZES)


def _size_text(size: int) -> str:
    if size == 0:
        return f"fewer than {SIZES[0]:,} parameters"
    if size == len(SIZES):
        return f"{SIZES[-1]:,} parameters and more"
    return f"{SIZES[size - 1]:,} to {SIZES[size] - 1:,} parameters"
