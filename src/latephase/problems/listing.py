"""What the command line says of the problems."""

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from .data import missing
from .problem import Problem
from .registry import get, names, option_defaults

MEGABYTE = 1e6


def overview() -> Table:
    """All problems, a line each: size, whether their data is here, and what they are."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("problem", "parameters", "data", "what it is"):
        table.add_column(heading, justify="right" if heading == "parameters" else "left")
    for name in names():
        problem = get(name)
        table.add_row(name, f"{_parameters(problem):,}", _state(problem), problem.title)
    return table


def details(name: str) -> Text:
    """All of one problem, in lines.

    Raises:
        ProblemError: as `get`.
    """
    problem = get(name)
    return Text("\n".join(_lines(problem)))


def _lines(problem: Problem) -> Iterator[str]:
    setting = problem.training
    yield f"{problem.name}, version {problem.version}: {problem.title}"
    yield problem.description
    if problem.source:
        yield f"Source: {problem.source}."
    batch = "all rows at once" if setting.batch_size is None else f"batches of {setting.batch_size}"
    momentum = f", momentum {setting.momentum}" if setting.momentum else ""
    yield f"First-order setting: {setting.optimizer} at {setting.lr:g}{momentum}, {batch}, {setting.epochs:,} epochs."
    yield f"Metrics: {', '.join(metric.name for metric in problem.metrics) or 'the loss only'}."
    options = option_defaults(problem.name)
    yield f"Options: {', '.join(f'{key}={value!r}' for key, value in options.items()) or 'none'}."
    files = missing(problem.dataset) if problem.dataset else []
    if files:
        yield "Missing data, which loading downloads, or which you put into the folder that LATEPHASE_DATA names:"
        yield from (f"  {file}" for file in files)
    else:
        yield "Data: ready."


def _parameters(problem: Problem) -> int:
    return sum(parameter.numel() for parameter in problem.model().parameters())


def _state(problem: Problem) -> Text:
    files = missing(problem.dataset) if problem.dataset else []
    if not files:
        return Text("ready", style="green")
    downloads = {file.urls: file.download_size for file in files}
    return Text(f"missing, {max(0.1, sum(downloads.values()) / MEGABYTE):,.1f} MB", style="yellow")
