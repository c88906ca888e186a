"""What came of a tuning: one row for each trial, the best setting of each strategy, and the study that repeats them."""

import csv
import io
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from ...records import as_cell, write_text_atomic
from ..config import parse_study
from .config import Tuning
from .record import record_of
from .storage import Trials


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        strategy: name of the strategy.
        place: which of its trials, from 0.
        number: its number in the storage, and in the name of its folder.
        outcome: "finished", "stopped" (by successive halving), "diverged" or "failed".
        values: the values that it tried, by path.
        start: the metric before the first step; None where there was none.
        value: the metric where it was last evaluated, `share` of the budget being spent: 1 where it is finished.
        share: that share; 0 where the trial was never evaluated.
        seconds: of the scored clock.
        steps: within the budget.
        error: what went wrong.
    """

    strategy: str
    place: int
    number: int
    outcome: str
    values: dict[str, Any]
    start: float | None
    value: float | None
    share: float
    seconds: float | None
    steps: float | None
    error: str


def outcomes(trials: Trials) -> list[Outcome]:
    """The rows of all concluded trials, strategies in order, each one's places in order."""
    tuning = trials.tuning
    found = []
    for name in tuning.tuned:
        for place, trial in sorted(trials.concluded(name).items()):
            record = record_of(trial, trials.where)
            values = {path: search.value(trial.params[path]) for path, search in tuning.searches[name].items()}
            found.append(
                Outcome(
                    strategy=name,
                    place=place,
                    number=trial.number,
                    outcome=record["outcome"],
                    values=values,
                    start=record.get("start"),
                    value=record.get("value"),
                    share=(record.get("at") or 0.0) / tuning.budget,
                    seconds=record.get("scored_seconds"),
                    steps=record.get("steps"),
                    error=record.get("error", ""),
                )
            )
    return found


def best_of(found: Iterable[Outcome], strategy: str, higher_is_better: bool, count: int = 1) -> list[Outcome]:
    """The best finished trials of a strategy, best first; of equal ones the earlier."""
    sign = -1.0 if higher_is_better else 1.0
    whole = [o for o in found if o.strategy == strategy and o.outcome == "finished" and o.value is not None]
    return sorted(whole, key=lambda o: (sign * (o.value or 0.0), o.place))[:count]


def write_table(found: Sequence[Outcome], path: Path) -> None:
    """Write all trials as CSV: one row each, a column for each value that was searched for."""
    columns = ("strategy", "trial", "number", "outcome", "value", "share", "start", "seconds", "steps", "error")
    searched = list(dict.fromkeys(name for outcome in found for name in outcome.values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(as_cell, [*columns, *searched]))
    for o in found:
        row = (o.strategy, o.place, o.number, o.outcome, o.value, o.share, o.start, o.seconds, o.steps, o.error)
        writer.writerow(map(as_cell, [*row, *(o.values.get(name, "") for name in searched)]))
    write_text_atomic(path, text.getvalue())


def without_best(tuning: Tuning, found: Sequence[Outcome]) -> list[str]:
    """Names of the tuned strategies of which no trial has finished."""
    return [name for name in tuning.tuned if not best_of(found, name, tuning.higher_is_better)]


def write_best(tuning: Tuning, found: Sequence[Outcome], path: Path) -> bool:
    """Write the study in which every strategy has its best setting, to be repeated with all seeds.

    A strategy of which no trial has finished is left out. Where that leaves none, nothing is written.

    Returns:
        Whether it was written.
    """
    left_out = without_best(tuning, found)
    table, notes, strategies = dict(tuning.table), [], []
    for strategy in tuning.study.strategies:
        name = strategy.name
        if name in left_out:
            notes.append(f"{name}: left out, as none of its trials finished")
        elif not tuning.searches[name]:
            notes.append(f"{name}: as it was given, nothing searched for")
            strategies.append(tuning.setting(name, {}))
        else:
            (best,) = best_of(found, name, tuning.higher_is_better)
            notes.append(f"{name}: {tuning.tune.metric} {best.value:.6g}, trial {best.place} of {tuning.tune.trials}")
            strategies.append(tuning.setting(name, best.values))
    if not strategies:
        return False
    for key in ("baseline", "target"):
        if table.get(key) in left_out:
            del table[key]
    table |= {"name": f"{tuning.study.name}-best", "strategies": strategies}
    heading = [
        f"The best settings of {tuning.study.name}: {tuning.tune.sampler} search, {tuning.tune.trials} trials of "
        f"{tuning.budget:g} {tuning.study.budget.unit} each, chosen by {tuning.tune.metric}.",
        *notes,
    ]
    text = "".join(f"# {line}\n" for line in heading) + "\n" + tomli_w.dumps(table)
    parse_study(tomllib.loads(text), str(path))  # that a study takes it is not left to hope
    write_text_atomic(path, text)
    return True
