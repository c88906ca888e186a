"""The command line: `latephase study`, `report`, `problems`, `bench`, `check`, `finish` and `tune`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from .records import PlainConsole
from .study.tune import tune

app = typer.Typer(
    help="Second-order training for PyTorch, above all of its late phase.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
out = PlainConsole()
err = PlainConsole(stderr=True)
app.command()(tune)


def _fail(error: Exception, status: int = 1) -> typer.Exit:
    err.print(f"latephase: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
    return typer.Exit(status)


@app.command()
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
    """
    from .problems import ProblemError
    from .problems.data import DataError
    from .study.command import asked_for, change_of, check_sizeable, say_scores
    from .study.config import ConfigError, study_table
    from .study.outline import fitted_text
    from .study.performing import (
        ExecutorError,
        StudyError,
        StudyProgress,
        check_executor,
        conduct,
        describe,
        fitted,
        parse_shard,
    )
    from .study.results import ResultsError
    from .study.suite import describe_suite, is_suite, perform_suite

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
            return
        with StudyProgress(out) as progress:
            if minutes is not None:
                config = fitted(config, directory, minutes, progress)
                progress.note(fitted_text(config) or f"{directory} keeps the size that it has.")
            perform = perform_suite if is_suite(table) else conduct
            page, _ = perform(config, directory, progress, executor, part)
        failed, damaged = say_scores(directory, out, err)
    except (ConfigError, StudyError, ExecutorError, ProblemError, DataError, ResultsError, OSError) as error:
        raise _fail(error) from error
    except KeyboardInterrupt:
        err.print("\nStopped. The same command goes on from here.")
        raise typer.Exit(130) from None
    _end(page, failed + damaged)


def _end(page: Path, troubles: list[str]) -> None:
    """Say where the report lies, and what went wrong; exit status 1 where something did."""
    out.print(f"Report: {page.resolve()}", soft_wrap=True, highlight=False)
    if troubles:
        err.print("\n".join(troubles), style="red", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(1)


@app.command()
def report(directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study or suite.")]) -> None:
    """Write scores, figures and page anew from the files of a study or suite; works while it runs."""
    from .study.command import say_scores
    from .study.page import write_report
    from .study.results import ResultsError
    from .study.suite import holds_suite, report_suite

    try:
        if not holds_suite(directory) and not (directory / "study.toml").is_file():
            raise ResultsError(f"{directory} holds no study (no study.toml); latephase study NAME --out DIR makes one")
        page = (report_suite if holds_suite(directory) else write_report)(directory)
        _, damaged = say_scores(directory, out, err)
    except (OSError, ResultsError) as error:
        raise _fail(error) from error
    _end(page, damaged)


@app.command()
def problems(
    name: Annotated[
        str, typer.Argument(help="Say all of one problem: a name of the list, or PACKAGE.MODULE:FACTORY.")
    ] = "",
) -> None:
    """List the test problems and the data that is missing; or say all of one."""
    from .problems import ProblemError
    from .problems.listing import details, overview

    try:
        out.print(details(name) if name else overview(), soft_wrap=bool(name), highlight=False)
    except ProblemError as error:
        raise _fail(error, 2) from error


@app.command()
def bench(
    directory: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path("runs/bench"),
    networks: Annotated[str, typer.Option(help="Names with commas between. Default: all but `digits`.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Dtypes of our products, with commas between.")] = "float32,bfloat16",
    all_methods: Annotated[bool, typer.Option("--all-methods", help="Measure our other methods too.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Measure compiled products too.")] = False,
    default_allocator: Annotated[
        bool, typer.Option("--default-allocator", help="Leave glibc's allocator as it is.")
    ] = False,
) -> None:
    """Measure what curvature products and steps cost, as ratios to the gradient, beside other packages."""
    from .bench import Settings, failures, notes, terminal
    from .bench import bench as run

    try:
        settings = Settings(rounds, threads, device, _words(dtype), all_methods, compiled)
        with out.status("measuring") as status:
            result = run(
                directory,
                settings,
                _words(networks),
                default_allocator=default_allocator,
                say=lambda line: status.update(f"measuring {line}"),
            )
    except (OSError, ValueError) as error:
        raise _fail(error) from error
    except KeyboardInterrupt:
        err.print("\nStopped.")
        raise typer.Exit(130) from None
    for table in terminal(result):
        out.print(table)
    out.print("\n".join(notes(result)), highlight=False, markup=False)
    err.print("\n".join(failures(result)), style="red", highlight=False, soft_wrap=True, markup=False)
    out.print(f"Files: {(directory / 'bench.md').resolve()}, bench.json, bench.png, bench.pdf", soft_wrap=True)


COLORS = {"ok": "green", "note": "cyan", "warning": "yellow", "defect": "bold red"}


@app.command(no_args_is_help=True)
def check(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="PACKAGE.MODULE:FACTORY",
            help="A function without arguments that returns (model, loss, batch), or an Objective.",
        ),
    ],
    microbatch_size: Annotated[
        int | None, typer.Option(min=1, help="Cut the batch into chunks of at most so many examples.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Move model, loss and batch there first: cpu, cuda, cuda:1.")
    ] = None,
) -> None:
    """Find out whether second-order steps will work on your problem, and what they cost.

    Say what the problem is in a file of your own, such as problem.py in this directory, and run
    `latephase check problem:make`:

    \b
        def make():
            model = Net()
            return model, torch.nn.CrossEntropyLoss(), (inputs, targets)

    Exit status 0: ready, perhaps with notes and warnings. 1: a defect, that is wrong results or steps that cannot be
    taken. 2: there is no such factory, or it does not return that.
    """  # noqa: D301
    from .user_code import FactoryError, made_by

    try:
        subject = made_by(factory)
        with out.status("checking") as status:
            found = _checked(subject, factory, microbatch_size, device, lambda text: status.update(f"checking {text}"))
    except (FactoryError, TypeError, ValueError) as error:
        raise _fail(error, 2) from error
    except KeyboardInterrupt:
        err.print("\nStopped.")
        raise typer.Exit(130) from None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"latephase check {factory}", title_justify="left")
    for heading in ("what", "", "finding"):
        table.add_column(heading, no_wrap=heading != "finding", overflow="fold")
    for finding in found.findings:
        color = COLORS[finding.severity]
        table.add_row(finding.name, Text(finding.severity, style=color), Text(finding.message))
    out.print(table)
    out.print(found.verdict, style="green" if found.ok else "bold red", highlight=False)
    if not found.ok:
        raise typer.Exit(1)


def _checked(subject: Any, factory: str, microbatch_size: int | None, device: str | None, say: Any) -> Any:
    """The report on what a factory returned."""
    from .diagnosis import check
    from .objective import Objective
    from .user_code import move_to, problem_of

    if not isinstance(subject, Objective):
        model, loss, batch = move_to(device, *problem_of(subject, factory))
        return check(model, loss, batch, microbatch_size=microbatch_size, say=say)
    if device is not None or microbatch_size is not None:
        raise ValueError(
            f"{factory} returns an Objective, which is checked as it is; --device and --microbatch-size need "
            "(model, loss, batch)"
        )
    return check(subject, say=say)


@app.command(no_args_is_help=True)
def finish(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="PACKAGE.MODULE:FACTORY",
            help="A function that returns (model, loss, data), an Objective or a dict of latephase.finish's arguments.",
        ),
    ],
    directory: Annotated[
        Path, typer.Option("--out", help="Folder of model, scores and page; run again to go on where it stopped.")
    ],
    seconds: Annotated[float | None, typer.Option(help="What it may take, the race included. Default: 600.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The same in steps, in place of --seconds.")] = None,
) -> None:
    """Finish a trained model: race ways to go on for a tenth of the time, and go on with the winner.

    DIR/best.pt is never worse on held-out data than the model that was given; DIR/index.html tells who took part and
    what came out. Say what there is in a file such as mine.py in this directory, and run `latephase finish mine:make`:

    \b
        def make():
            model = Net()
            model.load_state_dict(torch.load("trained.pt"))
            base = torch.optim.SGD(model.parameters(), lr=0.01)
            return {"model": model, "loss": torch.nn.CrossEntropyLoss(),
                    "data": train_loader, "held_out": valid_loader, "base": base}

    Exit status 0: done. 1: a file cannot be written. 2: there is no such factory, or what it returns will not do.
    """  # noqa: D301
    from .user_code import FactoryError, made_by

    try:
        from . import finishing

        arguments = finishing.arguments_of(made_by(factory), factory)
        with finishing.FinishProgress(out) as shown:
            arguments |= {"seconds": seconds, "steps": steps, "out": directory}
            found = finishing.finish(**arguments, say=shown.say, watch=shown.watch)
    except (FactoryError, TypeError, ValueError, OSError) as error:
        raise _fail(error, 1 if isinstance(error, OSError) else 2) from error
    except KeyboardInterrupt:
        err.print("\nStopped. The same command goes on from here.")
        raise typer.Exit(130) from None
    out.print(f"\n{found}", soft_wrap=True, highlight=False, markup=False)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
