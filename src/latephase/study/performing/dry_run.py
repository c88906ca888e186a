"""What a study would do, said before it does it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ...problems import get
from ...problems.data import missing
from ...problems.problem import row_count
from ...problems.registry import factory_of
from ...records import refuse_links
from ..config import ConfigError, Study, check_fit
from ..outline import hint
from .execute import EXECUTORS
from .runs import plan_runs, status_of
from .train import training_status


def parse_shard(text: str) -> tuple[int, int]:
    """Read "i/N".

    Raises:
        ConfigError: another form, or an i that is not from 1 to N.
    """
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ConfigError(f"--shard must be i/N with i from 1 to N, such as 2/4; got {text!r}")
    return int(part), int(parts)


def check_executor(name: str) -> None:
    """Hold an executor's name to those there are.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in EXECUTORS:
        raise ConfigError(f"--executor must be {' or '.join(EXECUTORS)}; got {name!r}{hint(name, list(EXECUTORS))}")


def describe(study: Study, directory: Path, shard: tuple[int, int]) -> Iterator[Any]:
    """Lines and tables: what would be trained and run, how long it takes as far as that is known, and missing data.

    Raises:
        ConfigError: a strategy's batches do not fit the data.
    """
    refuse_links(directory)
    place = factory_of(study.problem)
    problem = None if place else get(study.problem, **study.problem_options)
    files = missing(problem.dataset, study.problem_options.get("rows")) if problem and problem.dataset else []
    part, parts = shard
    keys = plan_runs(study)[part - 1 :: parts]
    if problem:
        yield f"Study {study.name}: {problem.title}."
    else:
        yield f"Study {study.name} of {place}, which is not called now: what depends on it is not looked at."
    if files:
        yield "Missing data, which the study would download (or put it into the folder that LATEPHASE_DATA names):"
        yield from (f"  {file}" for file in files)
    elif problem:
        check_fit(study, problem, row_count(problem.load().train))
    yield _training_line(study, directory, bool(problem))
    yield _table(study, directory, keys)
    yield _runs_line(study, directory, len(keys))


def _training_line(study: Study, directory: Path, is_known: bool) -> str:
    training = study.training
    status = training_status(directory)
    if status.get("status") == "finished":
        return f"Training: finished; {training.epochs} epochs took {status['seconds']:.0f} s."
    if not is_known:
        return "Training: as the file says; the problem says the rest."
    size = "all rows at once" if training.batch_size is None else f"batches of {training.batch_size}"
    epochs = "1 epoch" if training.epochs == 1 else f"{training.epochs} epochs"
    return f"Training: {epochs} of {training.optimizer} at {training.lr:g}, {size}."


def _table(study: Study, directory: Path, keys: list[Any]) -> Table:
    table = Table("strategy", "kind", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for epoch in study.checkpoints:
        table.add_column(f"epoch {epoch}", justify="right")
    states = {(key.strategy.name, key.checkpoint_epoch): Counter() for key in keys}
    for key in keys:
        state = status_of(directory, study, key)
        states[key.strategy.name, key.checkpoint_epoch]["finished" if state == "finished" else "to run"] += 1
    for strategy in study.strategies:
        counts = [states.get((strategy.name, epoch), Counter()) for epoch in study.checkpoints]
        cells = [", ".join(f"{number} {state}" for state, number in sorted(count.items())) for count in counts]
        table.add_row(strategy.name, strategy.kind, *cells)
    return table


def _runs_line(study: Study, directory: Path, count: int) -> str:
    budget = study.budget
    if budget.amount is not None:
        each = f"{budget.amount:g} {budget.unit}"
    else:
        each = f"{budget.share:.0%} of the training's {budget.unit}"
    line = f"{count} runs, {study.jobs} at a time, each with a budget of {each} and {study.evaluations} evaluations"
    seconds = training_status(directory).get("seconds")
    if seconds and budget.unit == "seconds":
        minutes = budget.of(seconds) * count / study.jobs / 60
        return f"{line}; at least {minutes:.0f} minutes, evaluations and starts not counted."
    return f"{line}."
