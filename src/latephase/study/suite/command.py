"""What `latephase study` and `latephase report` do with a suite: the dry run, the runs, the scores on the terminal."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ...records import read_json
from ..page import write_report
from .page import cell_of, write_suite_report
from .reading import read_suite
from .scores import SuiteScores, read_scores
from .verdicts import best_of, name_of, verdict

Say = Callable[[Any], None]


def read_command(table: Mapping[str, Any], source: str, change: Callable[[Any], Any], say: Say, *, dry: bool) -> Any:
    """The suite that is asked for; says first whose code is called, or in a dry run would be.

    Args:
        table: of the suite, as it was read.
        source: what errors call it.
        change: what the command's options make of each study.
        say: prints a line.
        dry: whether nothing is called.

    Raises:
        ConfigError: as `latephase.study.suite.config.parse_suite`.
    """
    from ..performing import announcement
    from .conduct import resolve_suite
    from .config import member_tables, parse_suite

    tables = [own for _, own, _ in member_tables(table, source)]
    for line in dict.fromkeys(line for own in tables for line in announcement(own, source, now=not dry)):
        say(line)
    suite = parse_suite(table, source, call=not dry).changed(change)
    return suite if dry else resolve_suite(suite)


def perform_suite(
    suite: Any, directory: Path, progress: Any, executor: str, shard: tuple[int, int]
) -> tuple[Path, list[str]]:
    """As `latephase.study.suite.conduct.conduct_suite`."""
    from .conduct import conduct_suite

    return conduct_suite(suite, directory, progress, executor, shard)


def describe_suite(suite: Any, directory: Path, part: tuple[int, int]) -> Iterator[Any]:
    """What would run, study by study."""
    from ..performing import describe

    yield f"Suite {suite.name}: {len(suite.members)} problems, all of whose runs go through one pool."
    for member in suite.members:
        yield from describe(member.study, directory / member.folder, part)


def report_suite(directory: Path) -> Path:
    """Write the pages of a suite's studies anew, as far as they have results, and then its own."""
    from ..results import ResultsError

    for entry in read_suite(directory).entries:
        if (directory / entry.folder / "study.toml").is_file():
            try:
                write_report(directory / entry.folder)
            except ResultsError:  # which the suite's page says
                continue
    return write_suite_report(directory)


def say_suite(directory: Path, say: Say) -> tuple[list[str], list[str]]:
    """Print the medians of a suite and its verdict.

    Returns:
        A line for each problem without results or strategy with failed runs, and one for each damaged file.
    """
    scores = read_scores(directory / "report" / "scores.json")
    say(medians_table(scores))
    for line in verdict(scores):
        say(line)
    failed = [f"{folder} has no results: {trouble}" for folder, trouble in scores.troubles.items()]
    damaged = []
    for case in scores.cases:
        for name, values in case.values.items():
            for value in values:
                where = f"{name_of(case, scores)}: {name}, seed {value.seed}"
                if value.status == "failed":
                    error = read_json(directory / case.folder / "runs" / run_folder(case.epoch, name, value.seed))
                    failed.append(f"{where} failed: {(error or {}).get('error', '')}")
                elif value.status == "damaged":
                    damaged.append(f"{where} has a damaged file; the same study command runs it again")
    return failed, damaged


def run_folder(epoch: int, strategy: str, seed: int) -> str:
    """The status file of a run, below a study's folder `runs`."""
    from ..results import run_id

    return f"{run_id(epoch, strategy, seed)}/status.json"


def medians_table(scores: SuiteScores) -> Table:
    """Medians over the seeds at the end of the budget, a row for each problem; the best in bold."""
    table = Table(title=f"{scores.name}: medians at the end", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("problem", overflow="fold")
    for strategy in scores.strategies:
        table.add_column(strategy.label, justify="right", overflow="fold")
    for case in scores.cases:
        styles = ["bold" if strategy.name in best_of(case) else "" for strategy in scores.strategies]
        texts = [cell_of(case, strategy.name).text for strategy in scores.strategies]
        table.add_row(name_of(case, scores), *map(Text, texts, styles))
    return table
