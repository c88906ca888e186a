"""A study from its configuration to its report: train, perform the runs, score. Running it again goes on."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ...problems import get
from ...problems.problem import row_count
from ...records import (
    DamagedFile,
    describe_environment,
    is_full,
    read_attempt,
    read_json,
    read_or_set_aside,
    refuse_links,
    remove_leftovers,
    write_json,
)
from ..config import ConfigError, Study, check_fit
from ..page import write_report
from ..results import JOURNALS, read_training_rows
from .claiming import LOCKED_AT_MOST, alone, check_folder, claim, claim_machine, claim_training, one_trains
from .dtypes import called_in_dtype, check_dtype
from .execute import ALLOCATOR, EXECUTORS, ExecutorError
from .identity import own_code
from .processes import how_ended, in_process
from .progress import StudyProgress
from .runs import Conditions, PlannedRun, RunKey, plan_runs, set_damaged_aside, status_of
from .train import is_whole, problem_record, train, training_status

NO_ROOM = "the disk is full: nothing that was written is damaged; make room, and the same command goes on from there"


class StudyError(RuntimeError):
    """The study stopped before its end; the message says why and how to go on."""


def resolve(study: Study) -> Study:
    """The study with everything filled in that depends on the data and the machine.

    Raises:
        ConfigError: a strategy's batches do not fit the data, the runs at a time not the cores, there is no such
            device, or the problem does not follow the dtype.
        DataError: data is missing and cannot be downloaded.
    """
    problem = get(study.problem, **study.problem_options)
    cores = os.cpu_count() or 1
    if study.device not in ("cpu", "cuda"):
        raise ConfigError(f"device must be cpu or cuda, got {study.device!r}")
    if study.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no GPU; give --device cpu, or another installation of torch")
    if study.device == "cpu" and study.jobs * study.threads > cores:
        raise ConfigError(
            f"jobs ({study.jobs}) times threads ({study.threads}) exceeds the {cores} cores of this machine, so that "
            "runs would starve each other; give --jobs"
        )
    train = called_in_dtype(study, problem.load).train
    check_dtype(study, problem, train)
    return check_fit(study, problem, row_count(train))


def conduct(
    study: Study, directory: Path, progress: StudyProgress, executor: str = "local", shard: tuple[int, int] = (1, 1)
) -> tuple[Path, list[str]]:
    """Run a study, or what is left of it, and write its report.

    Args:
        study: the resolved study.
        directory: its folder; made where it is missing.
        progress: told what is running.
        executor: "local" or "ray".
        shard: (i, N): perform the i-th of N parts of the runs, the others being other processes' work.

    Returns:
        The path of `report.html`, and a line for each run that broke.

    Raises:
        ConfigError: the folder holds another study, or another process works on it.
        DamagedFile: links lead out of the folder.
        StudyError: training died, or the disk is full.
        ExecutorError: the executor is not installed.
    """
    with in_words(), held(study, directory, progress, shard) as conditions:
        broken = perform([(conditions, key) for key in runs_of(study, shard)], progress, executor)
        return write_report(directory), broken


def runs_of(study: Study, shard: tuple[int, int]) -> list[RunKey]:
    """The i-th of N parts of a study's runs."""
    part, parts = shard
    return plan_runs(study)[part - 1 :: parts]


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Say of locks that are held and of errors of the system what they mean for a study.

    Raises:
        ConfigError: another process works on a folder.
        StudyError: the system refused something.
    """
    try:
        yield
    except Timeout as error:
        directory = Path(error.lock_file).parent
        raise ConfigError(f"another process works on {directory}; wait for it, or stop it") from error
    except OSError as error:
        raise StudyError(stopped_by(error)) from error


@contextlib.contextmanager
def held(study: Study, directory: Path, progress: StudyProgress, shard: tuple[int, int]) -> Iterator[Conditions]:
    """Hold a study's folder for one part of its runs; its training is done first, where it is not. As `conduct`."""
    part, parts = shard
    refuse_links(directory)
    check_folder(study, directory)
    directory.mkdir(parents=True, exist_ok=True)
    with alone(directory, part, parts):
        if parts == 1:  # nobody else writes here
            remove_leftovers(directory)
        os.environ.update(ALLOCATOR)  # for the processes that are started from here on
        environment = describe_environment(study.threads, study.jobs, study.device)
        with FileLock(directory / ".lock", timeout=LOCKED_AT_MOST):  # of several parts one after the other
            claim(study, directory)
            claim_machine(directory, environment, study)
        yield _trained(study, directory, environment, progress)


def stopped_by(error: OSError) -> str:
    """What an error of the system means for a study or a tuning, and how to go on."""
    if is_full(error):
        return f"{NO_ROOM} ({error})"
    return f"{error}: nothing that was written is lost; mend it and give the same command"


def _trained(study: Study, directory: Path, environment: dict[str, Any], progress: StudyProgress) -> Conditions:
    """Train where that is not done, in a process of its own, following its journal; what all runs share."""
    epochs = study.training.epochs
    with one_trains(directory):
        claim_training(study, directory)
        if not is_whole(directory, study, progress.note):
            progress.begin("training, epochs", epochs, _trained_so_far(directory)[0])
            worker = in_process(called_in_dtype, study, train, directory, study, threads=study.threads)
            while worker.process.join(1.0) or worker.process.is_alive():
                progress.advance(*_trained_so_far(directory))
            how = worker.ended()
            if how or training_status(directory).get("status") != "finished":
                raise StudyError(
                    f"training was {how or how_ended(0)}; an error of its own is above; nothing that was written is "
                    "lost, and the same command goes on from there"
                )
            progress.advance(epochs, _trained_so_far(directory)[1])
        status = training_status(directory)
        if read_or_set_aside(directory / "problem.json") is None:
            write_json(directory / "problem.json", called_in_dtype(study, problem_record, study))
    whole = float(status[study.budget.unit])
    budget = study.budget.of(whole)
    return Conditions(directory, study, budget, study.budget.share or budget / whole, environment)


def _trained_so_far(directory: Path) -> tuple[int, str]:
    """Epochs of the training that have been logged, and the loss of the last of them in words."""
    try:
        rows, _ = read_training_rows(directory / "training" / "rows.jsonl", sealed=True)
    except ValueError:  # a damaged journal is the training's business
        return 0, ""
    return (rows[-1]["epoch"], _loss_in_words(rows)) if rows else (0, "")


def _loss_in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The newest validation loss of evaluations; nothing where there is none."""
    losses = [row["valid_loss"] for row in rows if isinstance(row.get("valid_loss"), float)]
    return f"validation loss {losses[-1]:.4g}" if losses else ""


def perform(runs: Sequence[PlannedRun], progress: StudyProgress, executor: str) -> list[str]:
    """Perform the runs that are left, of one study or of several that are held and take equally many threads.

    Args:
        runs: each with what it shares with the others of its study, in order.
        progress: told what is running.
        executor: "local" or "ray".

    Returns:
        A line for each that broke.

    Raises:
        ConfigError: a run is finished with another configuration.
        StudyError: the user's own code was changed meanwhile.
    """
    left = [run for run in runs if not _holds(*run)]
    done = len(runs) - len(left)
    progress.begin("runs", len(runs), done)
    broken: list[str] = []
    if not left:
        return broken
    several = len({conditions.directory for conditions, _ in runs}) > 1
    code = _code_of(left)
    with contextlib.closing(EXECUTORS[executor](left)) as outcomes:
        for (conditions, key), outcome in outcomes:
            done += 1
            name = f"{conditions.directory.name}/{key.run_id}" if several else key.run_id
            folder = conditions.directory / "runs" / key.run_id
            progress.advance(done, ", ".join(filter(None, (f"{name} {outcome}", _loss_of(folder)))))
            if outcome not in ("finished", "failed"):
                error = f"its worker was {outcome}; the same command tries it again"
                broken.append(f"{name}: {error}")
                record = {"status": "failed", "error": error, "journals": _journals(folder)}
                write_json(folder / "status.json", record)
    after = _code_of(left)
    if changed := [factory for factory in code if after[factory] != code[factory]]:
        raise StudyError(
            f"the code of {', '.join(changed)} was changed while the study ran: runs before and after do not belong in "
            "one table; choose another folder with --out, or put it back and delete the folders of the later runs"
        )
    return broken


def _code_of(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """Hashes of the code outside of this package that runs call."""
    studies = {conditions.directory: conditions.study for conditions, _ in runs}.values()
    found: dict[str, str] = {}
    for study in studies:
        found |= own_code(study.problem, study.strategies)
    return found


def _loss_of(folder: Path) -> str:
    """The last validation loss of a run in words; nothing where its journal is damaged."""
    with contextlib.suppress(DamagedFile):
        return _loss_in_words(read_attempt(folder / JOURNALS[0]).rows)
    return ""


def _journals(folder: Path) -> dict[str, Any]:
    """What the journals of a run hold whose worker died; nothing of those that are damaged."""
    found = {}
    for name in JOURNALS:
        with contextlib.suppress(DamagedFile):
            found[name] = read_attempt(folder / name).end
    return found


def _holds(conditions: Conditions, key: RunKey) -> bool:
    """Whether a run is finished, with the configuration and the code of now.

    Raises:
        ConfigError: it is finished with others.
    """
    status = status_of(conditions.directory, conditions.study, key)
    if status == "damaged":
        set_damaged_aside(conditions.directory, key)
    if status != "finished":
        return False
    folder = conditions.directory / "runs" / key.run_id
    if (read_json(folder / "run.json") or {}).get("identity") == conditions.identity(key):
        return True
    raise ConfigError(
        f"{folder} was made by another configuration of this strategy, or by other versions of latephase or torch, or "
        "of your own code: results of both do not belong in one table; choose another folder with --out, or delete "
        "this one"
    )


__all__ = ["ConfigError", "ExecutorError", "StudyError", "conduct", "resolve"]
