"""Where runs are performed: in processes of this machine, or as tasks of a Ray cluster."""

import contextlib
import logging
import os
from collections.abc import Generator, Sequence

import torch

from ...records import is_ours
from .dtypes import called_in_dtype
from .identity import code_version
from .processes import Pool, how_ended
from .run import perform_run
from .runs import Conditions, PlannedRun, RunKey, status_of

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967295", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
"""Settings of glibc's allocator for all runs alike: it keeps freed memory instead of handing it back at every step.

By default every large temporary tensor is mapped anew. On one CPU thread that took a third of the time of a curvature
product on 384 digits (41 ms against 28 ms) and none of a gradient's on 128 (7.0 ms), so it would bias the comparison.
"""

Outcome = tuple[PlannedRun, str]
"""A run, and "finished", "failed", or what killed its worker."""


class ExecutorError(RuntimeError):
    """Runs cannot be performed as asked; says why and what to do."""


def perform_locally(runs: Sequence[PlannedRun]) -> Generator[Outcome, None, None]:
    """Perform runs in processes of this machine, `study.jobs` at a time, one process for each.

    Args:
        runs: which, in order, at least one; all have the same number of threads and of runs at a time.

    Yields:
        Each run as it ends.
    """
    waiting, study = list(runs), runs[0][0].study
    with contextlib.closing(Pool(study.jobs, study.threads)) as pool:
        while waiting or pool.running:
            while waiting and pool.has_room:
                run = waiting.pop(0)
                pool.start(run, _perform, *run)
            for job, _ in pool.wait():
                conditions, key = job.what
                status = status_of(conditions.directory, conditions.study, key)
                yield job.what, job.how or (status if status in ("finished", "failed") else how_ended(0))


def _perform(conditions: Conditions, key: RunKey) -> None:
    called_in_dtype(conditions.study, perform_run, conditions, key)
    os._exit(0)  # at once: a worker has nothing to clean up


def perform_with_ray(runs: Sequence[PlannedRun]) -> Generator[Outcome, None, None]:
    """Perform each run as a task of a Ray cluster, all of whose machines see the study's folder at the same path.

    A task takes `study.threads` CPUs, and a GPU where the study is on one; Ray decides how many run at a time. Attach
    to a cluster with RAY_ADDRESS; without it, Ray is started on this machine. Each task has a process of its own, so
    that no run finds what another has traced; it imports torch first, which takes some seconds.

    Args:
        runs: which, at least one; all have the same number of threads.

    Yields:
        Each run as it ends.

    Raises:
        ExecutorError: Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ExecutorError("Ray is not installed: pip install 'latephase[ray]', or --executor local") from error
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_worker_niceness", "0")  # by default, everything else on the machine goes first
        settings = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        ray.init(runtime_env={"env_vars": ALLOCATOR}, **settings)
    study = runs[0][0].study
    gpus = 1 if study.device == "cuda" else 0
    task = ray.remote(num_cpus=study.threads, num_gpus=gpus, max_retries=0, max_calls=1)(_in_ray)
    try:
        pending = {task.remote(*run): run for run in runs}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            run = pending.pop(done)
            try:
                yield run, ray.get(done)
            except RayError as error:
                cause = getattr(error, "cause", None)  # what a task raised; a worker that died has none
                if isinstance(cause, OSError) and is_ours(cause):
                    raise cause from error
                yield run, f"lost ({type(error).__name__ if cause is None else cause})"
    finally:
        if started:
            ray.shutdown()


def _in_ray(conditions: Conditions, key: RunKey) -> str:
    torch.set_num_threads(conditions.study.threads)
    if code_version() != conditions.code:
        raise ExecutorError("this worker has another version of latephase's code than the study began with")
    return called_in_dtype(conditions.study, perform_run, conditions, key)


EXECUTORS = {"local": perform_locally, "ray": perform_with_ray}
