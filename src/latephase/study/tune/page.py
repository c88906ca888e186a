"""The page of a tuning: the best setting of each strategy, how close the next ones are, and what mattered."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ...records import write_text_atomic
from ..page import picture, styles_of, whole_page
from ..results import Measure, Strategy, amount_text
from .config import Tuning
from .figures import MARKED, draw_all, label_of
from .outcome import Outcome, best_of

OUTCOMES = ("finished", "stopped", "diverged", "failed")


@dataclass(frozen=True)
class Tuned:
    """A strategy on the page.

    Attributes:
        strategy: as pages show strategies.
        best: its best finished trials, `MARKED` at most.
        middle: median of the values of all its finished trials; None without one.
        counts: how many of its trials ended in which way.
        setting: the best values, by what they are called.
    """

    strategy: Strategy
    best: list[Outcome]
    middle: float | None
    counts: Counter[str]
    setting: dict[str, str]


def write_tuning_report(tuning: Tuning, found: Sequence[Outcome], directory: Path) -> Path:
    """Draw the figures of a tuning and write its page.

    Args:
        tuning: the tuning.
        found: its trials.
        directory: its folder; figures go into ``figures``.

    Returns:
        The path of ``report.html``.
    """
    paths, charts = draw_all(tuning, found, directory / "figures")
    images = {path.stem: path.read_bytes() for path in paths if path.suffix == ".png"}
    pictures = {name: picture(image, None, charts[name]) for name, image in images.items()}
    page = whole_page("tuning.html.jinja", context_of(tuning, found) | {"pictures": pictures}, "latephase.study.tune")
    write_text_atomic(directory / "report.html", page)
    return directory / "report.html"


def context_of(tuning: Tuning, found: Sequence[Outcome]) -> dict[str, Any]:
    """All that the template reads, but for the figures."""
    measure = Measure(tuning.tune.metric, tuning.higher_is_better)
    rows = ranked([_tuned(tuning, found, name) for name in tuning.tuned], measure)
    return {
        "name": tuning.study.name,
        "description": tuning.study.description,
        "problem": tuning.study.problem,
        "tune": tuning.tune,
        "budget": amount_text(tuning.budget, tuning.study.budget.unit),
        "measure": measure,
        "sentence": sentence_of(rows, measure, tuning.tune.trials),
        "rows": rows,
        "looks": styles_of([row.strategy for row in rows]),
        "failed": [outcome for outcome in found if outcome.outcome == "failed"],
        "outcomes": OUTCOMES,
        "marked": MARKED,
    }


def ranked(rows: Sequence[Tuned], measure: Measure) -> list[Tuned]:
    """The strategies, that with the best trial first, those without a finished trial last."""
    sign = -1.0 if measure.higher_is_better else 1.0
    return sorted(rows, key=lambda row: (not row.best, sign * (row.best[0].value or 0.0) if row.best else 0.0))


def sentence_of(rows: Sequence[Tuned], measure: Measure, trials: int) -> str:
    """The outcome in one sentence; names stand in “quotes”."""
    done = [row for row in rows if row.best]
    if not done:
        return "No trial has finished yet."
    first, which = done[0], "highest" if measure.higher_is_better else "lowest"
    said = f"After {trials} trials of each, “{first.strategy.label}” has the {which} {measure.name}"
    said += f", {_best(first, measure)}"
    if len(done) == 1:
        return f"{said}."
    second = done[1]
    worst = first.best[-1].value
    lead = second.best[0].value
    said += f"; next is “{second.strategy.label}” with {_best(second, measure)}"
    if worst is not None and lead is not None and measure.reaches(lead, worst):
        said += f", which is within the {len(first.best)} best trials of the first and so cannot be told apart from it"
    return f"{said}."


def _best(row: Tuned, measure: Measure) -> str:
    return measure.value(row.best[0].value or 0.0)


def _tuned(tuning: Tuning, found: Sequence[Outcome], name: str) -> Tuned:
    strategy = next(each for each in tuning.study.strategies if each.name == name)
    own = [outcome for outcome in found if outcome.strategy == name]
    values = [outcome.value for outcome in own if outcome.outcome == "finished" and outcome.value is not None]
    best = best_of(own, name, tuning.higher_is_better, MARKED)
    about = {each.kind: each.about for each in (strategy, *strategy.singles)}
    return Tuned(
        strategy=Strategy(name, strategy.kind, strategy.label, {}, about),
        best=best,
        middle=median(values) if values else None,
        counts=Counter(outcome.outcome for outcome in own),
        setting={label_of(path): _text(value) for path, value in best[0].values.items()} if best else {},
    )


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
