"""The report page of a study: one self-contained HTML file that says what was run, how it was measured, what came out.

Figures are embedded, styles are inline, there is no script and nothing is fetched. Imports no torch.
"""

import base64
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .ending import MEASURES, ending_headline, endings
from .figures import draw, render
from .reading import METRICS, Reading, duration_text, loss_text, number_word, percent_text
from .results import Results, Run, Strategy, finite_values, load_results
from .score import Score, Summary, score_results, summarize, write_scores
from .store import write_text_atomic
from .style import DPI, styles

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


@dataclass(frozen=True)
class Picture:
    """A figure as the page embeds it: its wide and narrow PNG as data addresses, and the wide one's size at 96 dpi."""

    wide: str
    narrow: str
    width: int
    height: int


@dataclass(frozen=True)
class TableRow:
    """A strategy's row in the table of a checkpoint; ``metrics`` pairs each summary with whether it is the best."""

    strategy: Strategy
    colour: str
    steps: Summary
    metrics: list[tuple[Summary, bool]]
    warmup: str
    overshoot: str


@dataclass(frozen=True)
class Trouble:
    """A run that failed or diverged, and what is known of it."""

    run_id: str
    status: str
    error: str


def write_report(directory: str | os.PathLike[str]) -> Path:
    """Write ``scores.csv``, the figures and ``report.html`` into a study's folder.

    Everything is made anew from the result files, so it can be called while runs are missing or under way, and again
    later. The same result files give the same bytes.

    Args:
        directory: The study's folder; its training is finished, its runs may be missing, under way or failed.

    Returns:
        The path of ``report.html``.

    Raises:
        FileNotFoundError: There is no ``study.toml``.
        ValueError: The training is not finished or has no finite evaluation at a checkpoint.
    """
    root = Path(directory)
    results = load_results(root)
    scores = score_results(results)
    write_scores(scores, root / "scores.csv")
    wide = {path.stem: path.read_bytes() for path in draw(root) if path.suffix == ".png"}
    narrow = render(results, narrow=True)
    pictures = {name: _picture(wide[name], narrow[name]) for name in wide}
    write_text_atomic(root / "report.html", render_page(results, scores, pictures))
    return root / "report.html"


def render_page(results: Results, scores: list[Score], pictures: dict[str, Picture]) -> str:
    """Return the page as HTML.

    Args:
        results: The study's results.
        scores: Its scores.
        pictures: The figures, keyed by the names that `latephase.study.figures.draw` gives their files.
    """
    environment = Environment(
        loader=PackageLoader("latephase.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(loss=loss_text, percent=percent_text, duration=duration_text, word=number_word)
    return environment.get_template("report.html.jinja").render(_context(results, scores, pictures))


def _context(results: Results, scores: list[Score], pictures: dict[str, Picture]) -> dict[str, Any]:
    """Everything that the template reads."""
    reading = Reading(results, scores)
    plan, training = results.plan, results.training_status
    colours = {name: style.colour for name, style in styles(plan).items()}
    return {
        "plan": plan,
        "training": {key: training.get(key, plan.training.get(key)) for key in ("epochs", "steps", "lr", "batch_size")},
        "training_seconds": training["seconds"],
        "last": results.checkpoint(max(row["epoch"] for row in results.training)),
        "budget_seconds": results.budget_seconds,
        "has_hessian_free": any(strategy.is_hessian_free for strategy in plan.strategies),
        "options": {strategy.name: _options(strategy) for strategy in plan.strategies},
        "colours": colours,
        "constant": reading.constant,
        "headlines": reading.headlines() + ending_headline(results, scores),
        "checkpoints": [
            {
                "epoch": epoch,
                "row": results.checkpoint(epoch),
                "findings": reading.compare(epoch),
                "table": _table(reading, scores, epoch, colours),
                "endings": endings(results, scores, epoch),
                "steps": reading.steps(epoch),
            }
            for epoch in plan.checkpoints
        ],
        "pictures": pictures,
        "metrics": METRICS,
        "measures": MEASURES,
        "statuses": Counter(run.status for run in results.runs),
        "planned": len(results.runs),
        "troubles": _troubles(results.runs),
        "unfinished": [run for run in results.runs if not run.concluded],
        "machine": {
            label: value for key, label in _MACHINE.items() if (value := results.environment.get(key)) is not None
        },
        "jobs": results.environment.get("jobs", 1),
    }


def _picture(wide: bytes, narrow: bytes) -> Picture:
    width, height = struct.unpack(">II", wide[16:24])  # the IHDR chunk of a PNG begins with them
    return Picture(_address(wide), _address(narrow), round(width * 96 / DPI), round(height * 96 / DPI))


def _address(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode('ascii')}"


def _options(strategy: Strategy) -> str:
    return ", ".join(f"{key} = {value}" for key, value in strategy.options.items())


def _table(reading: Reading, scores: list[Score], epoch: int, colours: dict[str, str]) -> list[TableRow]:
    """The rows of a checkpoint's table, for the strategies with at least one concluded run."""
    steps = summarize(scores, "steps")
    best = {metric.field: reading.ranking(metric, epoch)[:1] for metric in METRICS}
    rows = []
    for strategy in reading.results.plan.strategies:
        runs = reading.results.concluded(epoch, strategy)
        metrics = []
        for metric in METRICS:
            if summary := reading.summary(metric, epoch, strategy):
                metrics.append((summary, summary.mean == best[metric.field][0][1].mean))
        if metrics:
            seconds = [_mean_seconds(runs, key) for key in ("warmup_seconds", "overshoot_seconds")]
            count = steps[epoch, strategy.name]
            rows.append(TableRow(strategy, colours[strategy.name], count, metrics, *seconds))
    return rows


def _mean_seconds(runs: list[Run], key: str) -> str:
    """The mean over the runs that recorded it (a run that failed may not have come that far)."""
    values = finite_values((run.record for run in runs), key)
    return duration_text(fmean(values)) if values else "–"


def _troubles(runs: tuple[Run, ...]) -> list[Trouble]:
    troubles = []
    for run in runs:
        if run.status == "failed":
            troubles.append(Trouble(run.run_id, "failed", str(run.record.get("error", "no error was recorded"))))
        elif run.concluded and run.diverged_at is not None:
            error = f"The train loss is not finite from second {run.diverged_at:.3g} of the budget on."
            troubles.append(Trouble(run.run_id, "diverged", error))
    return troubles
