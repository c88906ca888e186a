"""What the command line says of the problems; the list is made without torch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from .data import missing
from .registry import get, names, option_defaults
from .summaries import SUMMARIES, Summary

if TYPE_CHECKING:
    from .problem import Problem

MEGABYTE = 1e6


def overview() -> Table:
    """All problems, a line each: size, whether their data is here, and what they are."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("problem", "parameters", "data", "what it is"):
        table.add_column(heading, justify="right" if heading == "parameters" else "left")
    for row in overview_data():
        ready = row["missing_megabytes"] == 0
        state = "ready" if ready else f"missing, {max(0.1, row['missing_megabytes']):,.1f} MB"
        table.add_row(
            row["name"], f"{row['parameters']:,}", Text(state, style="green" if ready else "yellow"), row["title"]
        )
    return table


def overview_data() -> list[dict[str, Any]]:
    """The same for scripts: name, title, parameters, data set and the megabytes that a download of what is missing has.

    Raises:
        ProblemError: one of an installed package cannot be made, which it must be to be described.
    """
    rows = []
    for name in names():
        summary = SUMMARIES[name] if name in SUMMARIES else _made(name)
        files = missing(summary.dataset) if summary.dataset else []
        downloads = {file.urls: file.download_size for file in files}
        rows.append(
            {
                "name": name,
                "title": summary.title,
                "parameters": summary.parameters,
                "dataset": summary.dataset,
                "missing_megabytes": sum(downloads.values()) / MEGABYTE,
            }
        )
    return rows


def _made(name: str) -> Summary:
    problem = get(name)
    return Summary("", _parameters(problem), problem.dataset, problem.title)


def details(name: str) -> Text:
    """All of one problem, in lines.

    Raises:
        ProblemError: as `get`.
    """
    return Text("\n".join(_lines(details_data(name))))


def details_data(name: str) -> dict[str, Any]:
    """The same for scripts.

    Raises:
        ProblemError: as `get`.
    """
    problem = get(name)
    setting = problem.training
    return {
        "name": problem.name,
        "version": problem.version,
        "title": problem.title,
        "description": problem.description,
        "source": problem.source,
        "parameters": _parameters(problem),
        "training": {
            "optimizer": setting.optimizer,
            "lr": setting.lr,
            "momentum": setting.momentum,
            "batch_size": setting.batch_size,
            "epochs": setting.epochs,
        },
        "metrics": [metric.name for metric in problem.metrics],
        "options": option_defaults(problem.name),
        "missing": [str(file) for file in missing(problem.dataset)] if problem.dataset else [],
    }


def _lines(problem: dict[str, Any]) -> Iterator[str]:
    setting = problem["training"]
    yield f"{problem['name']}, version {problem['version']}: {problem['title']}"
    yield problem["description"]
    if problem["source"]:
        yield f"Source: {problem['source']}."
    batch = "all rows at once" if setting["batch_size"] is None else f"batches of {setting['batch_size']}"
    momentum = f", momentum {setting['momentum']}" if setting["momentum"] else ""
    yield (
        f"First-order setting: {setting['optimizer']} at {setting['lr']:g}{momentum}, {batch}, "
        f"{setting['epochs']:,} epochs."
    )
    yield f"Metrics: {', '.join(problem['metrics']) or 'the loss only'}."
    yield f"Options: {', '.join(f'{key}={value!r}' for key, value in problem['options'].items()) or 'none'}."
    if problem["missing"]:
        yield "Missing data, which loading downloads, or which you put into the folder that LATEPHASE_DATA names:"
        yield from (f"  {file}" for file in problem["missing"])
    else:
        yield "Data: ready."


def _parameters(problem: "Problem") -> int:
    return sum(parameter.numel() for parameter in problem.model().parameters())
