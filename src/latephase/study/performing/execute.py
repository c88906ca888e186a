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
from dataclasses import dataclass
from typing import Any

import torch

from ...records import StudyFileError, is_ours
from .identity import code_version
from .run import perform_run
from .runs import Conditions, RunKey, status_of

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967295", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
"""Settings of glibc's allocator for all runs alike: it keeps freed memory instead of handing it back at every step.

By default every large temporary tensor is mapped anew. On one CPU thread that took a third of the time of a curvature
product on 384 digits (41 ms against 28 ms) and none of a gradient's on 128 (7.0 ms), so it would bias the comparison.
"""

Outcome = tuple[RunKey, str]
"""A run, and "finished", "failed", or what killed its worker."""

INTERRUPTED = 130
"""Exit status of a worker that was interrupted, as a shell has it."""
CANNOT_WRITE = 74
"""Exit status of a worker that could not write a file of ours, as `sysexits.h` has it; it says which one."""


class ExecutorError(RuntimeError):
    """Runs cannot be performed as asked; says why and what to do."""


PRELOADED = ("__main__", __name__, "torch._dynamo", "torch._decomp")
"""What the server of processes imports, so that no run has to: the last two come with the first optimizer and the first
traced product, and take a second."""


@dataclass(frozen=True)
class Worker:
    """A function in a process of its own.

    Attributes:
        process: its process.
        errors: where it says which file it could not write.
    """

    process: Any
    errors: multiprocessing.connection.Connection

    @property
    def sentinel(self) -> Any:
        """Ready when the process has ended."""
        return self.process.sentinel

    def ended(self) -> str:
        """Wait for its end; how it ended where something killed it, else nothing.

        Raises:
            KeyboardInterrupt: the interrupt reached the process first.
            OSError: it could not write a file of ours, or found no room for another one.
        """
        self.process.join()
        said = None
        with contextlib.suppress(EOFError, OSError):  # it was killed while it spoke
            said = self.errors.recv() if self.errors.poll() else None
        self.errors.close()
        if said is not None:
            raise StudyFileError(*said)
        if self.process.exitcode == INTERRUPTED:
            raise KeyboardInterrupt
        return "" if self.process.exitcode == 0 else how_ended(self.process.exitcode)


def how_ended(code: int) -> str:
    """What the exit status of a process means, in words."""
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (by the system where memory ran out, or by somebody)"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal has no name
            return f"killed by signal {-code}"
    return f"ended with status {code}"


def in_process(function: Callable[..., Any], *arguments: Any, threads: int, slot: int = 0) -> Worker:
    """Start a function in a fresh process with pinned threads, which ends with this one.

    It is forked from a server that has imported this module and the problem's, started nothing, and holds no data.

    Args:
        function: what to call.
        arguments: what with.
        threads: of torch.
        slot: which of the processes that run at a time; chooses the GPU.

    Returns:
        The worker.
    """
    context = multiprocessing.get_context("forkserver")
    ours = [name for name in sys.modules if name.startswith("latephase.problems.")]  # a user's may do anything
    context.set_forkserver_preload([*PRELOADED, *ours])
    errors, said = context.Pipe(duplex=False)
    try:
        given = (function, arguments, threads, slot, os.getpid(), said)
        process = context.Process(target=_work, args=given, daemon=True)
        process.start()
    finally:
        said.close()
    return Worker(process, errors)


def _work(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    threads: int,
    slot: int,
    parent: int,
    errors: multiprocessing.connection.Connection,
) -> None:
    """Pin the threads; end at once with the parent or at an interrupt, since every row is on disk already."""
    os.environ["CUDA_VISIBLE_DEVICES"] = _device_of(slot)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        function(*arguments)
    except OSError as error:
        if not is_ours(error):
            raise
        errors.send((error.errno, error.strerror, error.filename))
        os._exit(CANNOT_WRITE)


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
    running: dict[Any, tuple[Worker, RunKey, int]] = {}
    try:
        while waiting or running:
            while waiting and free:
                key, slot = waiting.pop(0), free.pop(0)
                worker = in_process(_perform, conditions, key, threads=conditions.study.threads, slot=slot)
                running[worker.sentinel] = (worker, key, slot)
            for sentinel in multiprocessing.connection.wait(list(running)):
                worker, key, slot = running.pop(sentinel)
                free.append(slot)
                how = worker.ended()
                status = status_of(conditions.directory, conditions.study, key)
                yield key, how or (status if status in ("finished", "failed") else how_ended(0))
    finally:
        for worker, _, _ in running.values():
            worker.process.terminate()
        for worker, _, _ in running.values():
            worker.process.join()


def _perform(conditions: Conditions, key: RunKey) -> None:
    perform_run(conditions, key)
    os._exit(0)  # at once: a worker has nothing to clean up


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
                if isinstance(cause, OSError) and is_ours(cause):
                    raise cause from error
                yield key, f"lost ({type(error).__name__ if cause is None else cause})"
    finally:
        if started:
            ray.shutdown()


def _in_ray(conditions: Conditions, key: RunKey) -> str:
    torch.set_num_threads(conditions.study.threads)
    if code_version() != conditions.code:
        raise ExecutorError("this worker has another version of latephase's code than the study began with")
    return perform_run(conditions, key)


EXECUTORS = {"local": perform_locally, "ray": perform_with_ray}
