"""The page of a suite: one self-contained HTML file over all its problems, drawn from its scores. Imports no torch."""

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...records import write_text_atomic
from ..page import chart_of, picture, save, styles_of, whole_page
from ..results import Measure, amount_text, times_text
from .figures import figures, png
from .guide import alike_of, by_seed, choices_of, sentence_of
from .reading import read_members, read_suite, refuse_member_links
from .scores import CONCLUDED, Case, SuiteScores, scores_of, write_scores
from .verdicts import PROFILE_TAUS, best_of, groups, name_of, ratios, ratios_of, standings, verdict, within_spread

_MACHINE = {
    "device": "Device",
    "cpu": "Processor",
    "cores": "Cores",
    "threads": "Threads per run",
    "jobs": "Runs at the same time",
    "torch": "PyTorch",
    "latephase": "latephase",
}


@dataclass(frozen=True)
class Cell:
    """What a strategy came to on a problem, as the table says it.

    Attributes:
        text: the median, or why there is none.
        number: what the column is sorted by; infinity where runs failed, None where none has ended.
        spread: smallest and largest finite value; empty where there is one at most.
        note: how many runs failed, diverged, or have not ended; empty where all finished.
        mark: "best", "close" (within the spread of the best), or nothing.
    """

    text: str
    number: float | None
    spread: str
    note: str
    mark: str


def write_suite_report(directory: str | os.PathLike[str]) -> Path:
    """Write the scores, the figures and the page of a suite into its folder `report`.

    Everything is made anew from the files of its studies, so it can be called while runs are missing or under way. The
    pages of the studies themselves are `latephase.study.page.write_report`'s.

    Args:
        directory: The suite's folder.

    Returns:
        The path of `report/index.html`.

    Raises:
        FileNotFoundError: There is no `suite.toml`.
        ResultsError: It is damaged, links lead out of the folder, no problem has results, or one does not measure what
            it is to be compared by.
    """
    root = Path(directory)
    plan = read_suite(root)
    with FileLock(root / ".lock-report"):
        scores = scores_of(plan, read_members(plan))
        folder = root / "report"
        folder.mkdir(exist_ok=True)
        refuse_member_links(root, [])
        write_scores(scores, folder / "scores.json")
        links = {case.folder: f"../{case.folder}/report.html" for case in scores.cases}
        return draw_suite(scores, folder, links)


def draw_suite(scores: SuiteScores, folder: Path, links: dict[str, str] | None = None) -> Path:
    """Draw the figures and the page of a suite from its scores alone.

    Args:
        scores: its scores.
        folder: where to write `index.html`, and the figures as PNG and PDF.
        links: by folder, where the problem's own page is. Default: there are none.

    Returns:
        The path of `index.html`.
    """
    drawn, narrow = figures(scores), figures(scores, narrow=True)
    for name, figure in drawn.items():
        save(figure, folder, name)
    pictures = {name: picture(png(figure), png(narrow[name]), chart_of(figure)) for name, figure in drawn.items()}
    context = context_of(scores, links or {}) | {"pictures": pictures}
    filters = {"multiple": multiple_text, "times": times_text}
    page = whole_page("suite.html.jinja", context, "latephase.study.suite", "suite.css", **filters)
    write_text_atomic(folder / "index.html", page)
    return folder / "index.html"


def context_of(scores: SuiteScores, links: dict[str, str]) -> dict[str, Any]:
    """Everything that the template reads, but for the figures."""
    values = [value for case in scores.cases for row in case.values.values() for value in row]
    statuses = Counter(value.status for value in values)
    measures = list(dict.fromkeys(case.measured for case in scores.cases))
    shares = {name: [_share(row, tau) for tau in PROFILE_TAUS] for name, row in ratios(scores).items()}
    choices, labels = choices_of(scores), {strategy.name: strategy.label for strategy in scores.strategies}
    places = {strategy.name: place for place, strategy in enumerate(scores.strategies)}
    return {
        "scores": scores,
        "places": places,
        "links": links,
        "verdict": verdict(scores),
        "sentence": sentence_of(choices, scores),
        "choices": [(choice, alike_of(choice.table, labels)) for choice in choices],
        "measures": measures,
        "rows": [_row(case, scores) for case in scores.cases],
        "standings": standings(scores),
        "shares": shares,
        "taus": PROFILE_TAUS,
        "profile_cases": max((len(row) for row in ratios(scores).values()), default=0),
        "groups": groups(scores),
        "sizes": [_size(case, scores) for case in sorted(scores.cases, key=lambda case: case.parameters)],
        "looks": styles_of(scores.strategies),
        "planned": len(values),
        "statuses": statuses,
        "unfinished": sum(count for status, count in statuses.items() if status not in CONCLUDED),
        "troubles": _troubles(scores),
        "scales": sorted({case.scale for case in scores.cases} - {1.0}),
        "dtypes": sorted({case.dtype for case in scores.cases}),
        "machine": {label: scores.machine[key] for key, label in _MACHINE.items() if key in scores.machine},
    }


def _share(row: list[float], tau: float) -> str:
    return f"{sum(ratio <= tau for ratio in row)} of {len(row)}" if row else "–"


def _row(case: Case, scores: SuiteScores) -> dict[str, Any]:
    """A row of the table of a problem's medians."""
    best, close = best_of(case), within_spread(case)
    marks = dict.fromkeys(close, "close") | dict.fromkeys(best, "best")
    return {
        "case": case,
        "name": name_of(case, scores),
        "budget": amount_text(case.budget, case.unit),
        "cells": [cell_of(case, strategy.name, marks.get(strategy.name, "")) for strategy in scores.strategies],
    }


def cell_of(case: Case, strategy: str, mark: str = "") -> Cell:
    """What the table says of a strategy on a problem."""
    planned, ended, middle = case.values.get(strategy, ()), case.ended(strategy), case.median(strategy)
    counts = Counter(value.status for value in planned)
    notes = [f"{counts[status]} of {len(planned)} {status}" for status in ("diverged", "failed") if counts[status]]
    if len(ended) < len(planned):
        notes.append(f"{len(ended)} of {len(planned)} runs")
    known = [value.value for value in ended if value.value is not None]
    ends = [number_text(case.measured, end, 2) for end in (min(known), max(known))] if len(known) > 1 else []
    spread = " to ".join(ends)
    if middle is None:
        return Cell("–", None, "", ", ".join(notes), mark)
    if math.isfinite(middle):
        return Cell(number_text(case.measured, middle), middle, spread, ", ".join(notes), mark)
    word = "diverged" if counts["diverged"] >= counts["failed"] else "failed"
    return Cell(word, middle, spread, ", ".join(notes), mark)


def number_text(measure: Measure, number: float, digits: int = 3) -> str:
    """Write a value with few digits, so that ten columns stand beside each other; an accuracy as a study does."""
    if measure.is_share or number == 0:
        return measure.value(number)
    if 1e-3 <= abs(number) < 1e4:
        return f"{number:#.{digits}g}".rstrip(".") if abs(number) < 10**digits else f"{number:,.0f}"
    mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def multiple_text(ratio: float) -> str:
    """Write how many times the best something is."""
    if not math.isfinite(ratio):
        return "failed"
    return f"{ratio:.3g}" if ratio < 1000 else f"{ratio:,.0f}" if ratio < 1e6 else f"{ratio:.1e}"


def _size(case: Case, scores: SuiteScores) -> dict[str, Any]:
    """A row of the table by size and kind."""
    best, row = best_of(case), ratios_of(case)
    labels = {strategy.name: strategy.label for strategy in scores.strategies}
    others = [name for name in row if name not in best]
    against = scores.baseline if scores.baseline in others else min(others, key=lambda name: row[name], default=None)
    return {
        "case": case,
        "name": name_of(case, scores),
        "budget": amount_text(case.budget, case.unit),
        "best": [scores.label(name) for name in best],
        "alike": alike_of(by_seed(case, sorted(row, key=lambda name: row[name])), labels) if row else [],
        "median": number_text(case.measured, case.median(best[0]) or 0.0) if best else "–",
        "baseline": row.get(scores.baseline),
        "next": None if against is None or len(best) > 1 else min(row[name] for name in others),
    }


def _troubles(scores: SuiteScores) -> list[tuple[str, str, str]]:
    """Problem, strategy and what went wrong, for each pair in which something did."""
    found = []
    for case in scores.cases:
        for strategy in scores.strategies:
            bad: dict[str, list[int]] = {}
            for value in case.values.get(strategy.name, ()):
                if value.status != "finished":
                    bad.setdefault(value.status, []).append(value.seed)
            if bad:
                found.append((name_of(case, scores), strategy.label, "; ".join(map(_said, bad.items()))))
    return found


def _said(entry: tuple[str, list[int]]) -> str:
    status, seeds = entry
    return f"{_WORDS.get(status, status)} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


_WORDS = {"running": "not ended", "missing": "not started", "damaged": "a damaged file"}
"""What the page calls the statuses of runs without an end."""
