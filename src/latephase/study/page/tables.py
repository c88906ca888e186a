"""The one merge step of a study: scores as CSV; with pyarrow, scores and all evaluations as Parquet. No torch here."""

import importlib.util
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...records import write_atomic
from ..results import Results, Run, Score, finite, load_results, score_results, write_scores

_INTEGERS = ("problem_version", "checkpoint_epoch", "seed", "step", "steps", "samples", "products")
_TEXTS = ("problem", "strategy", "kind", "label", "status", "unit")


def merge(directory: str | os.PathLike[str]) -> list[Path]:
    """Write ``scores.csv`` into a study's folder, anew from the result files, and ``scores.parquet``, ``rows.parquet``.

    The latter two need pyarrow, `pip install "latephase[parquet]"`; without it those of an earlier call are removed,
    since they would be of other results.

    Args:
        directory: The study's folder; its training is finished, its runs may be missing, under way, failed or damaged.

    Returns:
        The files, each replaced as a whole.

    Raises:
        FileNotFoundError: There is no ``study.toml``.
        ValueError: see `latephase.study.results.load.load_results`.
    """
    results = load_results(directory)
    return write_tables(results, score_results(results))


def write_tables(results: Results, scores: Sequence[Score]) -> list[Path]:
    """Write the files of `merge` for results already read and scored."""
    paths = [results.root / name for name in ("scores.csv", "scores.parquet", "rows.parquet")]
    write_scores(scores, paths[0])
    if importlib.util.find_spec("pyarrow") is None:
        for path in paths[1:]:
            path.unlink(missing_ok=True)
        return paths[:1]
    rows = [row.row() for row in scores]
    _write_parquet(rows, list(rows[0]), paths[1])
    columns = [
        *("problem", "problem_version", "checkpoint_epoch", "strategy", "kind", "label", "seed", "status", "unit"),
        *("spent", "step", "lr", "l2_term"),
        *(f"{split}_{name}" for name in _names(results) for split in ("train", "valid", "test")),
        *("scored_seconds", "evaluation_seconds"),
    ]
    _write_parquet([row for run in results.runs for row in _evaluations(results, run)], columns, paths[2])
    return paths


def _names(results: Results) -> list[str]:
    return ["loss", *(metric["name"] for metric in results.problem["metrics"])]


def _evaluations(results: Results, run: Run) -> list[dict[str, Any]]:
    """A run's evaluation rows with what they belong to and with their wall-clock times."""
    plan = results.plan
    keys = {
        "problem": plan.problem,
        "problem_version": plan.problem_version,
        "checkpoint_epoch": run.checkpoint_epoch,
        "strategy": run.strategy.name,
        "kind": run.strategy.kind,
        "label": run.strategy.label,
        "seed": run.seed,
        "status": run.status,
        "unit": plan.unit,
    }
    clocks = {row["spent"]: row for row in run.clocks}
    return [{**clocks.get(row["spent"], {}), **row, **keys} for row in run.evaluations]


def _write_parquet(rows: Sequence[dict[str, Any]], columns: Sequence[str], path: Path) -> None:
    """Write rows with the given columns; what a row does not have, or what was not finite in a journal, is null."""
    import pyarrow as pa
    from pyarrow import parquet

    arrays = []
    for column in columns:
        values = [row.get(column) for row in rows]
        if column in _TEXTS:
            arrays.append(pa.array(values, pa.string()))
        elif column in _INTEGERS:
            whole = [None if (number := finite(value)) is None else int(number) for value in values]
            arrays.append(pa.array(whole, pa.int64()))
        else:
            arrays.append(pa.array([v if isinstance(v, int | float) else None for v in values], pa.float64()))
    content = io.BytesIO()
    parquet.write_table(pa.table(arrays, names=list(columns)), content)
    write_atomic(path, content.getvalue())
