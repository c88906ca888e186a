"""`latephase tune`: the command, its dry run and its summary."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from ...records import PlainConsole

if TYPE_CHECKING:
    from .config import Tuning
    from .outcome import Outcome

out = PlainConsole()
err = PlainConsole(stderr=True)


def tune(
    name_or_file: Annotated[
        str, typer.Argument(metavar="NAME-or-FILE.toml", help="A study's file with a table \\[tune]; or a named one.")
    ],
    directory: Annotated[
        Path, typer.Option("--out", help="Folder of the results; run again to go on where it stopped.")
    ],
    storage: Annotated[
        str | None,
        typer.Option(help="URL of an Optuna storage, for workers on many machines. Default: DIR/tune.db (SQLite)."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Trials at a time. Default: the study's own.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Of each strategy. Default: the file's own.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: the file's own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")] = False,
) -> None:
    """Tune every strategy with the same number of trials, chosen on the validation split; best.toml feeds a study.

    Each trial trains from fresh weights within the budget; successive halving stops those that fall behind. Start the
    command as often as you like, here or elsewhere on the same storage: the workers share the trials.

    Exit status 0: every strategy has a best. 1: something stopped it, or a strategy has no finished trial.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        _complain("latephase: Optuna is not installed: pip install 'latephase[tune]'")
        raise typer.Exit(1) from None
    from ...problems import ProblemError
    from ...problems.data import DataError
    from ...records import DamagedFile
    from ..config import ConfigError
    from ..performing import StudyError, StudyProgress, announcement
    from .conduct import tune as perform
    from .config import parse_tuning, tuning_table

    try:
        table, source = tuning_table(name_or_file)
        for line in announcement(table, source, now=not dry_run):
            out.print(line, soft_wrap=True, highlight=False)
        tuning = parse_tuning(table, source, call=not dry_run).changed(jobs, trials, device)
        if dry_run:
            for thing in _described(tuning):
                out.print(thing, soft_wrap=True, highlight=False)
            return
        with StudyProgress(out) as progress:
            found = perform(tuning, directory, progress, storage)
    except (ConfigError, StudyError, ProblemError, DataError, DamagedFile, OSError) as error:
        _complain(f"latephase: {error}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        err.print(
            "\nStopped. The same command goes on from here: what is finished is kept, what was under way begins anew."
        )
        raise typer.Exit(130) from None
    _say(tuning, found, directory)


def _described(tuning: "Tuning") -> Iterator[Any]:
    """What would run."""
    from ...problems import get
    from ...problems.data import missing
    from ...problems.registry import factory_of
    from .conduct import resolve_tuning

    study, settings = tuning.study, tuning.tune
    place = factory_of(study.problem)
    problem = None if place else get(study.problem, **study.problem_options)
    files = missing(problem.dataset, study.problem_options.get("rows")) if problem and problem.dataset else []
    if problem:
        yield f"Tuning {study.name}: {problem.title}."
    else:
        yield f"Tuning {study.name} of {place}, which is not called now: what depends on it is not looked at."
    if files:
        yield "Missing data, which the command would download (or put it into the folder that LATEPHASE_DATA names):"
        yield from (f"  {file}" for file in files)
    elif problem:
        resolve_tuning(tuning)
    table = Table("strategy", "kind", "trials", "searched for", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for strategy in study.strategies:
        count = settings.trials if strategy.name in tuning.tuned else 0
        table.add_row(strategy.name, strategy.kind, str(count), ", ".join(tuning.searches[strategy.name]) or "nothing")
    yield table
    unit = study.budget.unit
    rungs = ", ".join(f"{point:.4g}" for point in tuning.points[:-1])
    compared = (
        f"compared after {rungs} {unit}; the best 1 in {settings.halving.factor} go on" if rungs else "none stopped"
    )
    count = settings.trials * len(tuning.tuned)
    yield (
        f"{count} trials, {study.jobs} at a time, {settings.sampler} search, of at most {tuning.budget:g} {unit} each; "
        f"{compared}. Chosen by {settings.metric}."
    )


def _say(tuning: "Tuning", found: "Sequence[Outcome]", directory: Path) -> None:
    """Print what came out, and where it lies; exit status 1 where a strategy has no finished trial."""
    from .outcome import best_of, without_best

    title = f"{tuning.study.name}: the best of {tuning.tune.trials} trials each, by {tuning.tune.metric}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("strategy", "finished", "stopped", "diverged", "failed", "best"):
        table.add_column(heading, justify="left" if heading == "strategy" else "right", overflow="fold")
    settings = ["Best settings:"]
    for name in tuning.tuned:
        counts = Counter(outcome.outcome for outcome in found if outcome.strategy == name)
        best = best_of(found, name, tuning.higher_is_better)
        if best:
            said = (f"{path.removeprefix('options.')} {_text(value)}" for path, value in best[0].values.items())
            settings.append(f"  {name}: {', '.join(said)}")
        numbers = [str(counts[kind]) for kind in ("finished", "stopped", "diverged", "failed")]
        table.add_row(name, *numbers, f"{best[0].value:.4g}" if best else "")
    out.print(table)
    if len(settings) > 1:
        out.print("\n".join(settings), soft_wrap=True, highlight=False, markup=False)
    failed = [outcome for outcome in found if outcome.outcome == "failed"]
    for outcome in failed[:5]:
        folder = directory / "runs" / f"{outcome.strategy}_trial-{outcome.number:04d}"
        _complain(f"{outcome.strategy} {outcome.place} failed: {outcome.error} ({folder})")
    if len(failed) > 5:
        _complain(f"... and {len(failed) - 5} more, in trials.csv")
    lines = [f"Files: {(directory / 'trials.csv').resolve()}, best.toml, report.html, figures/"]
    left_out = without_best(tuning, found)
    if not left_out:
        to = directory.with_name(f"{directory.name}-best")
        lines.append(f"Next: latephase study {directory / 'best.toml'} --out {to}")
    out.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
    if left_out:
        _complain(f"No trial finished of: {', '.join(left_out)}. best.toml is without; look for other settings.")
        raise typer.Exit(1)


def _complain(line: str) -> None:
    err.print(line, style="red", highlight=False, soft_wrap=True, markup=False)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
