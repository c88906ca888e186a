"""Where runs are performed: in processes of this machine, or as tasks of a Ray cluster."""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from .config import Study
from .identity import code_version
from .run import Conditions, perform_run
from .runs import RunKey, status_of
from .store import is_full
from .train import train

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967295", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
"""Settings of glibc's allocator for all runs alike: it keeps freed memory instead of handing it back at every step.

By default every large temporary tensor is mapped anew. On one CPU thread that took a third of the time of a curvature
product on 384 digits (41 ms against 28 ms) and none of a gradient's on 128 (7.0 ms), so it would bias the comparison.
"""

FULL = "stopped by a full disk"

Outcome = tuple[RunKey, str]
"""A run, and "finished", "failed", `FULL`, or what killed its worker."""


class ExecutorError(RuntimeError):
    """Runs cannot be performed as asked; says why and what to do."""


PRELOADED = ("__main__", __name__, "torch._dynamo", "torch._decomp")
"""What the server of processes imports, so that no run has to: the last two come with the first optimizer and the first
traced product, and take a second."""


def in_process(function: Callable[..., Any], *arguments: Any, threads: int, slot: int = 0) -> Any:
    """Start a function in a fresh process with pinned threads, which ends with this one.

    It is forked from a server that has imported this module and the problem's, started nothing, and holds no data.

    Args:
        function: what to call.
        arguments: what with.
        threads: of torch.
        slot: which of the processes that run at a time; chooses the GPU.

    Returns:
        The process; its `sentinel` is ready when it has ended.
    """
    context = multiprocessing.get_context("forkserver")
    ours = [name for name in sys.modules if name.startswith("latephase.problems.")]  # a user's may do anything
    context.set_forkserver_preload([*PRELOADED, *ours])
    process = context.Process(target=_work, args=(function, arguments, threads, slot, os.getpid()), daemon=True)
    process.start()
    return process


def start_training(directory: Path, study: Study) -> Any:
    """Start the training, or what is left of it, in a process.

    Returns:
        The process, with exit status 0, `DISK_FULL`, or another of an error that it has printed.
    """
    return in_process(_train, directory, study, threads=study.threads)


def _train(directory: Path, study: Study) -> None:
    try:
        train(directory, study)
    except OSError as error:
        if is_full(error):
            os._exit(DISK_FULL)
        raise


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], threads: int, slot: int, parent: int) -> None:
    """Pin the threads; end at once with the parent or at an interrupt, since every row is on disk already."""
    os.environ["CUDA_VISIBLE_DEVICES"] = _device_of(slot)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    function(*arguments)


def _end_with(parent: int) -> None:
    """End this process as soon as that one is gone, however it went."""
    try:
        handle = os.pidfd_open(parent)
        multiprocessing.connection.wait([handle])
    except (AttributeError, OSError):  # no such call on this system, or the parent is gone already
        process = multiprocessing.parent_process()
        if process is not None and process.pid == parent:
            process.join()
    os._exit(1)


def _device_of(slot: int) -> str:
    """The CUDA devices that a run sees: one, by turns."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    return devices[slot % len(devices)] if devices and devices != [""] else ""


def perform_locally(conditions: Conditions, keys: Sequence[RunKey]) -> Generator[Outcome, None, None]:
    """Perform runs in processes of this machine, `study.jobs` at a time, one process for each.

    Args:
        conditions: what the runs share.
        keys: which runs, in order.

    Yields:
        Each run as it ends.
    """
    waiting, free = list(keys), list(range(conditions.study.jobs))
    running: dict[int, tuple[Any, RunKey, int]] = {}
    try:
        while waiting or running:
            while waiting and free:
                key, slot = waiting.pop(0), free.pop(0)
                process = in_process(_perform, conditions, key, threads=conditions.study.threads, slot=slot)
                running[process.sentinel] = (process, key, slot)
            for sentinel in multiprocessing.connection.wait(list(running)):
                process, key, slot = running.pop(sentinel)  # pyright: ignore[reportArgumentType]
                process.join()
                free.append(slot)
                if process.exitcode == INTERRUPTED:  # the interrupt reached the worker first
                    raise KeyboardInterrupt
                yield key, _outcome(process.exitcode, status_of(conditions.directory, conditions.study, key))
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()


DISK_FULL = 28
"""Exit status of a worker that found no room to write."""
INTERRUPTED = 130
"""Exit status of a worker that was interrupted, as a shell has it."""


def _perform(conditions: Conditions, key: RunKey) -> None:
    try:
        perform_run(conditions, key)
    except OSError as error:
        if is_full(error):
            os._exit(DISK_FULL)
        raise
    os._exit(0)  # at once: a worker has nothing to clean up


def _outcome(code: int | None, status: str) -> str:
    """What became of a run: what its files say, unless its worker died."""
    if code == 0 and status in ("finished", "failed"):
        return status
    if code == DISK_FULL:
        return FULL
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def perform_with_ray(conditions: Conditions, keys: Sequence[RunKey]) -> Generator[Outcome, None, None]:
    """Perform each run as a task of a Ray cluster, all of whose machines see the study's folder at the same path.

    A task takes `study.threads` CPUs, and a GPU where the study is on one; Ray decides how many run at a time. Attach
    to a cluster with RAY_ADDRESS; without it, Ray is started on this machine. Each task has a process of its own, so
    that no run finds what another has traced; it imports torch first, which takes some seconds.

    Args:
        conditions: what the runs share.
        keys: which runs.

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
    gpus = 1 if conditions.study.device == "cuda" else 0
    task = ray.remote(num_cpus=conditions.study.threads, num_gpus=gpus, max_retries=0, max_calls=1)(_in_ray)
    try:
        pending = {task.remote(conditions, key): key for key in keys}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            key = pending.pop(done)
            try:
                yield key, ray.get(done)
            except RayError as error:
                cause = getattr(error, "cause", None)  # what a task raised; a worker that died has none
                yield key, f"lost ({type(error).__name__ if cause is None else cause})"
    finally:
        if started:
            ray.shutdown()


def _in_ray(conditions: Conditions, key: RunKey) -> str:
    torch.set_num_threads(conditions.study.threads)
    if code_version() != conditions.code:
        raise ExecutorError("this worker has another version of latephase's code than the study began with")
    try:
        return perform_run(conditions, key)
    except OSError as error:
        if is_full(error):
            return FULL
        raise


EXECUTORS = {"local": perform_locally, "ray": perform_with_ray}
