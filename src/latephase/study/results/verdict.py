"""The verdict of a study: one sentence and one table, with numbers, spread and sureness. Imports no torch."""

import math
from collections import Counter
from dataclasses import dataclass

from .findings import Reading, number_word, series
from .leading import Place, Table, leading
from .load import Strategy
from .measures import Measure
from .score import Summary

FEW = 3
"""So many names are told; of more, only how many."""


@dataclass(frozen=True)
class VerdictRow:
    """A strategy in the table of a verdict.

    Attributes:
        strategy: which one.
        summary: of its best values over the seeds.
        place: how far it is behind the leader, and how sure that is.
        among_best: from how many checkpoints it leads or cannot be told apart from the leader.
    """

    strategy: Strategy
    summary: Summary
    place: Place
    among_best: int


@dataclass(frozen=True)
class Verdict:
    """What came out in one measure.

    Attributes:
        measure: the measure.
        epoch: of the checkpoint that it is about, the last one with results.
        sentence: the outcome; names stand in “quotes”.
        rows: the table, best mean first.
        table: how all compare with the leader.
        checkpoints: from how many there are results.
    """

    measure: Measure
    epoch: int
    sentence: str
    rows: tuple[VerdictRow, ...]
    table: Table
    checkpoints: int


def verdicts_of(reading: Reading) -> list[Verdict]:
    """The verdict in each main measure, the last one first, by which suites compare as well; none without results."""
    found = [_verdict(reading, measure) for measure in reversed(reading.results.main_measures)]
    return [verdict for verdict in found if verdict is not None]


def _verdict(reading: Reading, measure: Measure) -> Verdict | None:
    tables: dict[int, Table] = {}
    for epoch in sorted(reading.results.plan.checkpoints):
        if ranking := reading.ranking(measure, epoch):
            names = [strategy.name for strategy, _ in ranking]
            blocks = {strategy.name: reading.by_seed(measure, epoch, strategy) for strategy, _ in ranking}
            tables[epoch] = leading(blocks, measure, names)
    if not tables:
        return None
    last = max(tables)
    counts = Counter(name for table in tables.values() for name in (table.places[0].name, *table.alike))
    rows = tuple(
        VerdictRow(strategy, summary, tables[last].place(strategy.name), counts[strategy.name])
        for strategy, summary in reading.ranking(measure, last)
    )
    sentence = _sentence(reading, measure, last, rows, tables)
    return Verdict(measure, last, sentence, rows, tables[last], len(tables))


def _sentence(
    reading: Reading, measure: Measure, epoch: int, rows: tuple[VerdictRow, ...], tables: dict[int, Table]
) -> str:
    several = f", the last of {number_word(len(tables))} checkpoints" if len(tables) > 1 else ""
    where = f"From epoch {epoch}{several}," if epoch else "From the initialisation,"
    leader, best = rows[0].strategy, rows[0].summary
    start = reading.results.checkpoint(epoch)[measure.key] if reading.results.training else math.nan
    if math.isclose(best.mean, start, rel_tol=1e-6):  # the same state, evaluated a second time
        what = "checkpoint" if epoch else "start"
        return f"{where} no strategy improved on the {what}, whose {measure.name} is {measure.value(start)}."
    which = "highest" if measure.higher_is_better else "lowest"
    seeds = f"in the mean of {number_word(best.n)} seeds" if best.n > 1 else "with one seed"
    said = f"{where} “{leader.label}” reaches the {which} {measure.name}, {measure.value(best.mean)} {seeds}"
    return f"{said}{_sureness(rows, tables[epoch])}."


def _sureness(rows: tuple[VerdictRow, ...], table: Table) -> str:
    if len(rows) == 1:
        return ""
    if not table.is_known:
        return ", too few to say how sure that is"
    labels = {row.strategy.name: row.strategy.label for row in rows}
    alike, others = table.alike, len(rows) - 1
    if not alike:
        unknown = sum(place.is_apart is None for place in table.places[1:])
        whom = "all others" if others > 1 else f"“{labels[table.places[1].name]}”"
        known = "all others that did not fail" if unknown else whom
        return f", and is told apart from {known}"
    if len(alike) <= FEW:
        return f", but cannot be told apart from {series([f'“{labels[name]}”' for name in alike])}"
    if len(alike) == others:
        return f", but cannot be told apart from any of the {number_word(others)} others"
    return f", but cannot be told apart from {number_word(len(alike))} of the {number_word(others)} others"
