"""Pages of the studies under docs/studies, drawn from what is kept of them: their scores, and the trials of tunings.

The rows of a study are megabytes and are not kept, so that what needs them (losses over the budget, paths) is one
figure beside the scores, drawn when the study was run. Everything else is drawn here: relative performance, times to
target, performance profiles, a verdict, a table of the means; and the pages of tunings.
Of a suite, its `report/scores.json` is kept, from which its whole page is drawn.

    python benchmarks/study_pages.py                      # or `make pages`
    python benchmarks/study_pages.py fashion-mnist --out somewhere
"""

import argparse
import csv
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from latephase.study.page import picture, render_scores, save_all
from latephase.study.page.of_scores import performance_profile, relative_performance, target_bars
from latephase.study.results import Results, Score, read_plan
from latephase.study.suite import draw_suite
from latephase.study.suite import read_scores as read_suite_scores
from latephase.study.tune.config import Tuning, read_tuning
from latephase.study.tune.outcome import Outcome
from latephase.study.tune.page import write_tuning_report

STUDIES = Path(__file__).parent.parent / "docs" / "studies"
TUNINGS = {"trials.csv": "{name}", "sensitivity.csv": "qlr-sensitivity"}
"""Files of trials, and the tuning whose they are."""
TEXTS = ("problem", "strategy", "status", "unit")
COUNTS = ("checkpoint_epoch", "seed", "steps", "samples", "products")
HIGHER = ("accuracy",)
"""Metrics of which more is better."""


def number(text: str) -> float | None:
    """A number of a table; None where the cell is empty."""
    return float(text) if text else None


def read_scores(path: Path) -> list[Score]:
    """The scores of a study, as `write_scores` wrote them."""
    own = [entry.name for entry in fields(Score) if entry.name != "metrics"]
    found = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values: dict[str, Any] = {name: row[name] if name in TEXTS else number(row[name]) for name in own}
            values |= {name: int(row[name]) for name in COUNTS}
            metrics = {name: float(text) for name, text in row.items() if name not in own and text}
            found.append(Score(**values, metrics=metrics))
    return found


def read_results(folder: Path, scores: Sequence[Score]) -> Results:
    """A study without its rows: plan, environment and measures, which the columns of the scores name."""
    columns = [name for name, value in scores[0].row().items() if name.startswith("best_test_") and value is not None]
    names = [name.removeprefix("best_test_") for name in columns if name != "best_test_loss"]
    metrics = [{"name": name, "higher_is_better": name in HIGHER} for name in names]
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    plan = read_plan(folder / "study.toml")
    return Results(folder, plan, {"metrics": metrics}, environment, (), {}, scores[0].budget, ())


def figures_of(results: Results, scores: Sequence[Score]) -> Iterator[tuple[str, Figure]]:
    """The figures that scores are enough for, each with its name."""
    plan = results.plan
    yield "relative", relative_performance(results, scores, plan.strategies)
    for epoch in plan.checkpoints:
        yield f"time-to-target-{epoch:04d}", target_bars(results, scores, epoch)
    if len(plan.checkpoints) > 1:
        yield "profile", performance_profile(results, scores)


def read_trials(path: Path, tuning: Tuning) -> list[Outcome]:
    """The trials of a tuning, as its table has them, with the values that were searched for."""
    found = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.append(outcome_of(row, tuning))
    return found


def outcome_of(row: Mapping[str, str], tuning: Tuning) -> Outcome:
    """A row of a table of trials."""
    searches = tuning.searches[row["strategy"]]
    columns = {path: path if path in row else _written_before(path) for path in searches}
    values = {path: value_of(row[columns[path]], search.choices) for path, search in searches.items()}
    return Outcome(
        strategy=row["strategy"],
        place=int(row["trial"]),
        number=int(row["number"]),
        outcome=row["outcome"],
        values=values,
        start=number(row["start"]),
        value=number(row["value"]),
        share=float(row["share"]),
        seconds=number(row["seconds"]),
        steps=number(row["steps"]),
        error=row["error"],
    )


def _written_before(path: str) -> str:
    """The column of an option in tables that were written before it was a field of a part."""
    former = {"options.damping.initial": "options.damping", "options.damping.factors": "options.damping_factors"}
    return next((old + path[len(new) :] for new, old in former.items() if path.startswith(new)), path)


def value_of(text: str, choices: Sequence[Any] | None) -> Any:
    """A value that was tried: the choice that is written so, or a number."""
    if choices is None:
        return float(text)
    return next(choice for choice in choices if str(choice) == text or number(text) == choice)


def draw(folder: Path, out: Path) -> Path:
    """Draw the page and figures of a study or a suite; the path of the page."""
    if (folder / "scores.json").exists():
        return draw_suite(read_suite_scores(folder / "scores.json"), out)
    scores = read_scores(folder / "scores.csv")
    results = read_results(folder, scores)
    assert all(math.isfinite(row.best_train_loss) for row in scores)
    out.mkdir(parents=True, exist_ok=True)
    _, charts = save_all(figures_of(results, scores), out)
    pictures = {name: picture((out / f"{name}.png").read_bytes(), None, chart) for name, chart in charts.items()}
    links = {}
    for file, name in TUNINGS.items():
        if (folder / file).exists():
            tuning = read_tuning(name.format(name=folder.name))
            part = out / Path(file).stem
            part.mkdir(exist_ok=True)
            page = write_tuning_report(tuning, read_trials(folder / file, tuning), part)
            links[f"the tuning {tuning.study.name}"] = page.relative_to(out).as_posix()
    for kept in (*folder.glob("*.png"), folder / "scores.csv"):
        shutil.copy(kept, out)
    pictures = {kept.stem: picture(kept.read_bytes(), None) for kept in sorted(folder.glob("*.png"))} | pictures
    (out / "page.html").write_text(render_scores(results, scores, pictures, links), encoding="utf-8")
    return out / "page.html"


def main() -> None:
    """Draw the pages that are asked for, or all."""
    parser = argparse.ArgumentParser(description="Draw the pages of the studies under docs/studies from their scores.")
    parser.add_argument("names", nargs="*", help="studies; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/pages"), help="folder; default runs/pages")
    arguments = parser.parse_args()
    for name in arguments.names or sorted(path.parent.name for path in STUDIES.glob("*/scores.*")):
        print(draw(STUDIES / name, arguments.out / name))


if __name__ == "__main__":
    main()
