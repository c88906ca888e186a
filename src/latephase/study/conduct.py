"""A study from its configuration to its report: train, perform the runs, score. Running it again goes on."""

import multiprocessing
import os
import signal
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..problems import get
from ..problems.problem import row_count
from .config import ConfigError, Study, check_fit
from .environment import describe_environment
from .progress import StudyProgress
from .report import write_report
from .run import is_finished, perform_run, plan_runs
from .store import read_journal, read_json, write_json, write_text_atomic
from .train import train

FREE = ("seeds", "description")
"""Keys that may change when a study goes on: they move no run's result."""

SAME_MACHINE = ("cpu", "torch", "latephase", "threads")
"""What must be as before when a study goes on: seconds on one machine are not seconds on another."""


ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967295", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
"""Settings of glibc's allocator for all runs alike: it keeps freed memory instead of handing it back at every step.

By default every large temporary tensor is mapped anew. On one CPU thread that took a third of the time of a curvature
product on 384 digits (41 ms against 28 ms) and none of a gradient's on 128 (7.0 ms), so it would bias the comparison.
"""


class StudyError(RuntimeError):
    """The study stopped before its end; the message says why and how to go on."""


def resolve(study: Study) -> Study:
    """The study with everything filled in that depends on the data.

    Raises:
        ConfigError: a strategy's batches do not fit the data, or the runs at a time not the cores.
    """
    problem = get(study.problem)
    cores = os.cpu_count() or 1
    if study.jobs * study.threads > cores:
        raise ConfigError(
            f"jobs ({study.jobs}) times threads ({study.threads}) exceeds the {cores} cores of this machine, so that "
            "runs would starve each other; give --jobs"
        )
    return check_fit(study, problem, row_count(problem.load().train))


def conduct(study: Study, directory: Path, progress: StudyProgress) -> Path:
    """Run a study, or what is left of it, and write its report.

    Args:
        study: the resolved study.
        directory: its folder; made where it is missing.
        progress: told what is running.

    Returns:
        The path of `report.html`.

    Raises:
        ConfigError: the folder holds another study.
        StudyError: a worker process died.
    """
    claim(study, directory)
    try:
        with FileLock(directory / ".lock", timeout=0):
            os.environ.update(ALLOCATOR)  # for the processes that are started from here on
            environment = describe_environment(study.threads, study.jobs)
            claim_machine(directory, environment)
            seconds = _train(study, directory, progress)
            _perform(study, directory, study.budget_share * seconds, environment, progress)
            return write_report(directory)
    except Timeout as error:
        raise ConfigError(f"another process works on {directory}; wait for it, or stop it") from error


def claim_machine(directory: Path, environment: dict[str, Any]) -> None:
    """Write down the machine and the software, unless the study began on others.

    Raises:
        ConfigError: it did; names what differs.
    """
    path = directory / "environment.json"
    before = read_json(path) or environment
    for key in SAME_MACHINE:
        if before.get(key) != environment[key]:
            raise ConfigError(
                f"{directory} was begun with {key} {before.get(key)!r}, this is {environment[key]!r}: their seconds do "
                "not compare; choose another folder with --out"
            )
    write_json(path, environment)


def claim(study: Study, directory: Path) -> None:
    """Write the study's configuration into its folder, unless another study is there.

    Raises:
        ConfigError: the folder holds another study; names the first key that differs.
    """
    path = directory / "study.toml"
    text = study.toml()
    if path.exists():
        old, new = tomllib.loads(path.read_text(encoding="utf-8")), tomllib.loads(text)
        for key in (old | new).keys() - set(FREE):
            if old.get(key) != new.get(key):
                raise ConfigError(
                    f"{directory} holds another study: {key} is {old.get(key)!r} there and {new.get(key)!r} here; "
                    "choose another folder with --out, or delete this one"
                )
    elif directory.exists() and any(entry.name != ".lock" for entry in directory.iterdir()):
        raise ConfigError(f"{directory} is not empty and holds no study; choose another folder with --out")
    write_text_atomic(path, text)


@contextmanager
def _workers(study: Study, jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes with pinned threads; an interruption ends it without waiting for what was planned."""
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(study.threads,)
    )
    try:
        yield pool
    except KeyboardInterrupt:
        for process in list((pool._processes or {}).values()):  # every row is on disk, so nothing is lost
            process.terminate()
        raise
    except BrokenProcessPool as error:
        raise StudyError(
            "a worker process died (killed, or out of memory); nothing that was written is lost, and the same command "
            "goes on from there"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    """Pin the threads; end at once with the parent or at an interrupt, since every row is on disk already."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _train(study: Study, directory: Path, progress: StudyProgress) -> float:
    """Train in a process of its own and follow its journal."""
    epochs = study.training.epochs
    status = read_json(directory / "training" / "status.json") or {}
    if status.get("status") == "finished":
        return status["seconds"]
    progress.begin("training, epochs", epochs, _trained(directory))
    with _workers(study, 1) as pool:
        future = pool.submit(train, directory, study)
        while not wait([future], timeout=1.0).done:
            progress.advance(_trained(directory))
        seconds = future.result()
    progress.advance(epochs)
    return seconds


def _trained(directory: Path) -> int:
    """Epochs of the training that have been logged."""
    rows = read_journal(directory / "training" / "rows.jsonl")
    return max((row["epoch"] for row in rows if row["event"] == "evaluation"), default=0)


def _perform(
    study: Study, directory: Path, budget: float, environment: dict[str, Any], progress: StudyProgress
) -> None:
    """Perform the runs that are left, as many at a time as there are jobs."""
    keys = plan_runs(study)
    left = [key for key in keys if not is_finished(directory, key)]
    done = len(keys) - len(left)
    progress.begin("runs", len(keys), done)
    if not left:
        return
    with _workers(study, study.jobs) as pool:
        futures = {pool.submit(perform_run, directory, study, key, budget, environment): key for key in left}
        waiting = set(futures)
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                done += 1
                progress.advance(done, f"{futures[future].run_id} {future.result()}")
