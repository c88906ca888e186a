"""The report page of a study: one self-contained HTML file that says what was run, how it was measured, what came out.

Figures are embedded, styles and the small script that sorts tables are inline, and nothing is fetched. No torch here.
"""

import base64
import io
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import FileLock
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ...records import DPI, refuse_links, visible, without_passwords, write_text_atomic
from ..results import (
    TARGETS,
    UNITS,
    Comparison,
    Measure,
    Reading,
    Results,
    Run,
    Score,
    Strategy,
    Summary,
    amount_text,
    duration_text,
    ending_headline,
    ending_measures,
    endings,
    finite,
    finite_values,
    load_results,
    number_word,
    read_plan,
    score_results,
    smallest_p,
    standings,
    step_summaries,
    target_times,
)
from .figures import draw_results, render
from .options_text import options_text
from .style import styles
from .tables import write_tables

_MACHINE = {
    "device": "Device",
    "cpu": "Processor",
    "cores": "Cores",
    "platform": "System",
    "threads": "Threads per run",
    "jobs": "Runs at the same time",
    "python": "Python",
    "torch": "PyTorch",
    "numpy": "NumPy",
    "latephase": "latephase",
    "allocator": "Memory allocator",
    "git_commit": "Commit",
}
_OVER_BUDGET = {
    "mean": "Mean over the seeds; the band reaches from the lower to the upper quartile. A cross is the last finite "
    "value of a run that ended early; from there on, the mean is over the other seeds. Values much worse than the "
    "start are cut off.",
    "median": "Median over the seeds with its 95% bootstrap interval; a run that is not finite counts as worst. A "
    "cross is the last finite value of a run that ended early. Values much worse than the start are cut off.",
}
_COSTS = (
    ("steps", "Steps"),
    ("samples", "Samples"),
    ("gradients", "Gradient-equivalents"),
    ("products", "Product rows"),
    ("scored_seconds", "Scored clock"),
    ("cold_seconds", "Cold clock"),
    ("warmup_seconds", "Warm-up"),
    ("evaluation_seconds", "Evaluation"),
    ("overshoot", "Overshoot"),
)


_LOADER = PackageLoader("latephase.study.page")
_EXPLAINED = [name for name in _LOADER.list_templates() if name.startswith("kinds/")]
"""What the page says of a kind of strategies that readers may not know, by the kind's name."""


@dataclass(frozen=True)
class Picture:
    """A figure as the page embeds it: its wide and narrow PNG as data addresses, and the wide one's size at 96 dpi."""

    wide: str
    narrow: str
    width: int
    height: int


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number that it is sorted by, None where there is none."""

    text: str
    number: float | None


@dataclass(frozen=True)
class TableRow:
    """A strategy's row in the table of a checkpoint; ``metrics`` pairs each summary with whether it is the best."""

    strategy: Strategy
    metrics: list[tuple[Summary, bool]]


@dataclass(frozen=True)
class Trouble:
    """A run that failed, diverged or is damaged, and what is known of it."""

    run_id: str
    status: str
    error: str


def write_report(directory: str | os.PathLike[str]) -> Path:
    """Write the tables, the figures and ``report.html`` into a study's folder.

    Everything is made anew from the result files, so it can be called while runs are missing or under way, and again
    later. The same result files give the same page.

    Args:
        directory: The study's folder; its training is finished, its runs may be missing, under way, failed or damaged.

    Returns:
        The path of ``report.html``.

    Raises:
        FileNotFoundError: There is no ``study.toml``.
        ValueError: see `latephase.study.results.load.load_results`.
    """
    root = Path(directory)
    read_plan(root / "study.toml")  # nothing is written into another folder, nor is a lock
    refuse_links(root)
    with FileLock(root / ".lock-report"):  # of several parts of a study one after the other, each reading what is there
        results = load_results(root)
        scores = score_results(results)
        write_tables(results, scores)
        wide = {path.stem: path.read_bytes() for path in draw_results(results) if path.suffix == ".png"}
        narrow = render(results, narrow=True)
        pictures = {name: _picture(wide[name], narrow[name]) for name in wide}
        write_text_atomic(root / "report.html", render_page(results, scores, pictures))
    return root / "report.html"


def render_page(results: Results, scores: list[Score], pictures: dict[str, Picture]) -> str:
    """Return the page as HTML.

    Args:
        results: The study's results.
        scores: Its scores.
        pictures: The figures, keyed by the names that `figures.build` gives them; what is not there is
            left out of the page.
    """
    environment = Environment(
        loader=_LOADER,
        autoescape=True,
        finalize=_letters,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=duration_text, word=number_word)
    return environment.get_template("report.html.jinja").render(_context(results, scores, pictures))


def _letters(value: Any) -> Any:
    """What an expression of the page says, with nothing that would steer the reader's browser; then it is escaped."""
    return visible(without_passwords(value)) if isinstance(value, str) and not isinstance(value, Markup) else value


def _context(results: Results, scores: list[Score], pictures: dict[str, Picture]) -> dict[str, Any]:
    """Everything that the template reads."""
    reading = Reading(results, scores)
    plan, training = results.plan, results.training_status
    last = results.checkpoint(max(row["epoch"] for row in results.training))
    pairs, kinds = len(plan.seeds), {kind for strategy in plan.strategies for kind in strategy.about}
    return {
        "plan": plan,
        "problem": results.problem,
        "training": {"steps": None} | plan.training.model_dump() | training,
        "training_optimizer": plan.training.optimizer.replace("sgd", "SGD").replace("adam", "Adam"),
        "training_seconds": training["seconds"],
        "training_end": [
            (measure, value) for measure in results.measures if (value := finite(last.get(measure.key))) is not None
        ],
        "budget": amount_text(results.budget, plan.unit),
        "unit": UNITS[plan.unit],
        "over_budget_caption": _OVER_BUDGET[plan.curves],
        "explained": [name for name in _EXPLAINED if Path(name).name.split(".")[0] in kinds],
        "has_second_order": any(strategy.is_second_order for strategy in plan.strategies),
        "options": {strategy.name: options_text(strategy) for strategy in plan.strategies},
        "colours": {name: style.colour for name, style in styles(plan).items()},
        "baseline": reading.baseline,
        "target": plan.strategy(plan.target),
        "headlines": reading.headlines() + ending_headline(results, scores),
        "least_p": min(1.0, smallest_p(pairs) * max(1, len(plan.strategies) - 1)),
        "checkpoints": [_checkpoint(reading, scores, epoch) for epoch in plan.checkpoints],
        "profiles": _profiles(results, scores),
        "pictures": pictures,
        "measures": results.measures,
        "main_measures": results.main_measures,
        "ending_measures": ending_measures(results),
        "costs": [title for _, title in _COSTS],
        "statuses": Counter(run.status for run in results.runs),
        "planned": len(results.runs),
        "troubles": _troubles(results),
        "unfinished": [run for run in results.runs if run.status in ("missing", "running")],
        "machine": {
            label: value for key, label in _MACHINE.items() if (value := results.environment.get(key)) is not None
        },
        "jobs": results.environment.get("jobs", 1),
    }


def _checkpoint(reading: Reading, scores: list[Score], epoch: int) -> dict[str, Any]:
    """What the section of one checkpoint shows."""
    results = reading.results
    concluded = [(strategy, results.concluded(epoch, strategy)) for strategy in results.plan.strategies]
    return {
        "epoch": epoch,
        "name": f"{epoch:04d}",
        "row": results.checkpoint(epoch),
        "findings": reading.compare(epoch),
        "table": _table(reading, epoch),
        "endings": endings(results, scores, epoch),
        "comparisons": _comparisons(reading, epoch),
        "costs": [(strategy, _cost_cells(runs, results.plan.unit)) for strategy, runs in concluded if runs],
        "steps": step_summaries(results, epoch),
    }


def _picture(wide: bytes, narrow: bytes) -> Picture:
    width, height = struct.unpack(">II", wide[16:24])  # the IHDR chunk of a PNG begins with them
    return Picture(_address(wide), _address(narrow), round(width * 96 / DPI), round(height * 96 / DPI))


def _address(image: bytes) -> str:
    """A PNG as data address, its colours cut to 128: a third of the size, and no difference to the eye."""
    small = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, "png")
    return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode('ascii')}"


def _table(reading: Reading, epoch: int) -> list[TableRow]:
    """The rows of a checkpoint's table, for the strategies with at least one concluded run."""
    measures = reading.results.measures
    best = {measure: ranking[0][1].mean for measure in measures if (ranking := reading.ranking(measure, epoch))}
    found = [
        (strategy, [(reading.summary(measure, epoch, strategy), best.get(measure)) for measure in measures])
        for strategy in reading.results.plan.strategies
    ]
    return [
        TableRow(strategy, [(summary, summary.mean == top) for summary, top in cells if summary])
        for strategy, cells in found
        if cells[0][0]
    ]


def _comparisons(reading: Reading, epoch: int) -> list[tuple[Measure, Comparison]]:
    """The paired comparisons of a checkpoint in the main measures."""
    return [(m, row) for m in reading.results.main_measures for row in reading.comparisons(m, epoch)]


def _cost_cells(runs: list[Run], unit: str) -> list[Cell]:
    """Means of what the runs took, over those that recorded it (a run that failed may not have come that far)."""
    cells = []
    for key, _ in _COSTS:
        values = finite_values((run.record for run in runs), key)
        mean = fmean(values) if values else None
        in_seconds = key.endswith("seconds") or (key == "overshoot" and unit == "seconds")
        text = "–" if mean is None else duration_text(mean) if in_seconds else _count_text(mean)
        cells.append(Cell(text, mean))
    return cells


def _count_text(mean: float) -> str:
    return f"{mean:,.0f}" if mean >= 10 or mean == int(mean) else f"{mean:.1f}"


def _profiles(results: Results, scores: list[Score]) -> list[dict[str, Any]]:
    """Standings in the performance profile per target; none for a single checkpoint, which says nothing of shares."""
    found = []
    for measure, column in zip(results.main_measures[:2], TARGETS.values(), strict=True):
        times = target_times(results, scores, column)
        if len(times) > 1:
            found.append({"measure": measure, "rows": standings(times, results.plan.baseline), "cases": len(times)})
    return found


def _troubles(results: Results) -> list[Trouble]:
    troubles = []
    for run in results.runs:
        if run.status == "failed":
            troubles.append(Trouble(run.run_id, "failed", str(run.record.get("error", "no error was recorded"))))
        elif run.concluded and run.diverged_at is not None:
            at = amount_text(run.diverged_at, results.plan.unit)
            troubles.append(
                Trouble(run.run_id, "diverged", f"The train loss is not finite from {at} of the budget on.")
            )
        for damage in run.damage:
            path = damage.path.relative_to(results.root)
            troubles.append(Trouble(run.run_id, "damaged", f"{path} cannot be read: {damage.problem}"))
    return troubles
