"""What `latephase study` and `latephase report` ask for and say; nothing here imports torch before it is needed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from .suite import holds_suite, is_suite, read_command, say_suite


def change_of(scale: float, changes: Mapping[str, Any], seconds: float | None) -> Callable[[Any], Any]:
    """What the options of the command make of a study.

    Args:
        scale: of `--scale`.
        changes: keys with other values; None leaves the study's own.
        seconds: of each run's budget; None leaves the study's own.
    """
    from .config import scaled, with_seconds

    def change(config: Any) -> Any:
        config = config if scale == 1.0 else scaled(config, scale)
        config = config.model_copy(update={key: value for key, value in changes.items() if value is not None})
        return config if seconds is None else with_seconds(config, seconds)

    return change


def check_sizeable(table: Mapping[str, Any], scale: float, executor: str, shard: tuple[int, int]) -> None:
    """Whether `--minutes` has a meaning beside the rest of the command.

    Raises:
        ConfigError: it has none; says what to give.
    """
    from .config import ConfigError

    if is_suite(table):
        raise ConfigError("--minutes sizes one study, and this is a suite of several; give --scale or --seconds")
    if scale != 1.0:
        raise ConfigError("--minutes chooses the scale; give one of --minutes and --scale")
    if executor != "local" or shard != (1, 1):
        raise ConfigError(
            "--minutes measures this machine and performs all runs here, so that it goes with neither --shard nor "
            "--executor; give --scale"
        )


def asked_for(table: dict[str, Any], source: str, change: Callable[[Any], Any], out: Console, *, dry: bool) -> Any:
    """The study or suite of a table; says first whose code is called, or in a dry run would be.

    Args:
        table: as it was read.
        source: what errors call it.
        change: what the command's options make of a study.
        out: where to say it.
        dry: whether nothing is called.

    Raises:
        ConfigError: unknown keys and problems, values that do not fit.
    """
    from .config import parse_study
    from .performing import announcement, resolve

    def say(line: str) -> None:
        out.print(line, soft_wrap=True, highlight=False)

    if is_suite(table):
        return read_command(table, source, change, say, dry=dry)
    for line in announcement(table, source, now=not dry):
        say(line)
    config = change(parse_study(table, source, call=not dry))
    return config if dry else resolve(config)


def say_scores(directory: Path, out: Console, err: Console) -> tuple[list[str], list[str]]:
    """Print the mean scores over seeds, one line per checkpoint and strategy; of a suite the medians of each problem.

    Returns:
        A line for each run that failed, and one for each damaged file.
    """
    from .results import load_results
    from .scores_table import scores_table

    if holds_suite(directory):
        return say_suite(directory, lambda thing: out.print(thing, soft_wrap=isinstance(thing, str), highlight=False))
    results = load_results(directory)
    out.print(scores_table(results))
    failed = [f"{run.run_id} failed: {run.record.get('error', '')}" for run in results.runs if run.status == "failed"]
    damaged = [
        f"{damage.path} is damaged ({damage.problem}); the same study command runs it again"
        for run in results.runs
        for damage in run.damage
    ]
    if not results.plan.sealed:
        err.print(
            f"latephase: {directory} was written by an earlier version, whose files carry no checksums: whether values "
            "in them were changed cannot be told",
            highlight=False,
            soft_wrap=True,
        )
    return failed, damaged


def scores_data(directory: Path) -> dict[str, Any]:
    """The scores for scripts: of a study each run's, as in `scores.csv`; of a suite what `report/scores.json` holds."""
    from ..records import read_json
    from .results import load_results, score_results

    if holds_suite(directory):
        return {"suite": read_json(directory / "report" / "scores.json")}
    results = load_results(directory)
    return {"study": results.plan.name, "scores": [score.row() for score in score_results(results)]}
