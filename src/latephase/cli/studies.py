"""`latephase study` and `latephase report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .terminal import AsJSON, err, fail, interrupted, out, print_json


def study(
    name_or_file: Annotated[
        str, typer.Argument(metavar="NAME-or-FILE.toml", help="A named study, or a file of your own.")
    ],
    directory: Annotated[
        Path, typer.Option("--out", help="Folder of the results; run again to go on where it stopped.")
    ],
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time. Default: the study's own.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Use seeds 0 .. N-1. Default: the study's own.")] = None,
    scale: Annotated[
        float, typer.Option(help="Shrink the study: so many times its epochs, seeds and checkpoints. The page says so.")
    ] = 1.0,
    seconds: Annotated[
        float | None, typer.Option(help="Budget of each run in seconds. Default: the study's own.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="End within so many minutes here: a short trial measures the machine, seeds, epochs and checkpoints "
            "follow. The page says so."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: the study's own.")] = None,
    executor: Annotated[
        str, typer.Option(help="local: processes of this machine. ray: tasks of a Ray cluster (latephase\\[ray]).")
    ] = "local",
    shard: Annotated[
        str, typer.Option(metavar="i/N", help="Perform the i-th of N parts of the runs, for plain batch systems.")
    ] = "1/1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")] = False,
) -> None:
    """Run a late-phase study or a suite of them, or what is left of it, and write its report.

    Trains the study's problem with its first-order setting, saves checkpoints, and from chosen ones lets every strategy
    go on under the same budget. What is finished is not run again. A suite does so for several problems.

    Exit status 0: all runs are finished. 1: something stopped the study, or runs failed. 130: interrupted; the same
    command goes on.
    """
    from ..problems import ProblemError
    from ..problems.data import DataError
    from ..study.command import asked_for, change_of, check_sizeable, say_scores
    from ..study.config import ConfigError, study_table
    from ..study.outline import fitted_text
    from ..study.performing import (
        ExecutorError,
        StudyError,
        StudyProgress,
        check_executor,
        conduct,
        describe,
        fitted,
        parse_shard,
    )
    from ..study.results import ResultsError
    from ..study.suite import describe_suite, is_suite, perform_suite

    changes = {"jobs": jobs, "device": device, "seeds": None if seeds is None else list(range(seeds))}
    try:
        part = parse_shard(shard)
        check_executor(executor)
        table, source = study_table(name_or_file)
        if minutes is not None:
            check_sizeable(table, scale, executor, part)
        config = asked_for(table, source, change_of(scale, changes, seconds), out, dry=dry_run)
        if dry_run:
            for thing in (describe_suite if is_suite(table) else describe)(config, directory, part):
                out.print(thing, soft_wrap=True, highlight=False)
            if minutes is not None:
                out.print(f"That is the whole; for {minutes:g} minutes a trial would choose its size.", highlight=False)
            return
        with StudyProgress(out) as progress:
            if minutes is not None:
                config = fitted(config, directory, minutes, progress)
                progress.note(fitted_text(config) or f"{directory} keeps the size that it has.")
            perform = perform_suite if is_suite(table) else conduct
            page, _ = perform(config, directory, progress, executor, part)
        failed, damaged = say_scores(directory, out, err)
    except (ConfigError, StudyError, ExecutorError, ProblemError, DataError, ResultsError, OSError) as error:
        raise fail(error) from error
    except KeyboardInterrupt:
        raise interrupted("Stopped. The same command goes on from here.") from None
    _end(page, failed + damaged)


def _end(page: Path, troubles: list[str], console: Console = out) -> None:
    """Say where the report lies, and what went wrong; exit status 1 where something did."""
    console.print(f"Report: {page.resolve()}", soft_wrap=True, highlight=False)
    if troubles:
        err.print("\n".join(troubles), style="red", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(1)


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study or suite.")],
    as_json: AsJSON = False,
) -> None:
    """Write scores, figures and page anew from the files of a study or suite; works while it runs.

    Exit status 1: there is no study, or a file of it is damaged.
    """
    from ..study.command import say_scores, scores_data
    from ..study.page import write_report
    from ..study.results import ResultsError
    from ..study.suite import holds_suite, report_suite

    try:
        if not holds_suite(directory) and not (directory / "study.toml").is_file():
            raise ResultsError(f"{directory} holds no study (no study.toml); latephase study NAME --out DIR makes one")
        page = (report_suite if holds_suite(directory) else write_report)(directory)
        if as_json:
            print_json({"page": str(page.resolve())} | scores_data(directory))
        _, damaged = say_scores(directory, err if as_json else out, err)
    except (OSError, ResultsError) as error:
        raise fail(error) from error
    _end(page, damaged, err if as_json else out)
