"""Functions in processes of their own, so many at a time: for runs, trials, and the training."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ...records import StudyFileError, is_ours

INTERRUPTED = 130
"""Exit status of a worker that was interrupted, as a shell has it."""
CANNOT_WRITE = 74
"""Exit status of a worker that could not write a file of ours, as `sysexits.h` has it; it says which one."""

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


@dataclass(eq=False)
class Job:
    """A function under way in a process of a pool.

    Attributes:
        what: the caller's name for it.
        worker: its process.
        slot: which of the pool's.
        pipe: to the function, where it talks.
        how: how it ended, where something killed it.
        record: what the caller keeps of what it said.
    """

    what: Any
    worker: Worker
    slot: int
    pipe: multiprocessing.connection.Connection | None
    how: str = ""
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def handles(self) -> set[Any]:
        """Of which one is ready when there is something to know."""
        return {self.worker.sentinel} if self.pipe is None else {self.worker.sentinel, self.pipe}

    def said(self) -> Iterator[Any]:
        """What the function has said by now; nothing more where its process is gone."""
        with contextlib.suppress(EOFError, OSError):
            while self.pipe is not None and self.pipe.poll():
                yield self.pipe.recv()

    def answer(self, message: Any) -> None:
        """Tell the function something, unless its process is gone."""
        with contextlib.suppress(OSError):
            if self.pipe is not None:
                self.pipe.send(message)


class Pool:
    """Processes, so many at a time, each with a slot of its own.

    Args:
        size: how many.
        threads: of torch, of each.
    """

    def __init__(self, size: int, threads: int):
        self.running: list[Job] = []
        self._threads, self._free = threads, list(range(size))

    @property
    def has_room(self) -> bool:
        """Whether another function may be started."""
        return bool(self._free)

    def start(self, what: Any, function: Callable[..., Any], *arguments: Any, talks: bool = False) -> None:
        """Start a function.

        Args:
            what: the caller's name for it.
            function: what to call.
            arguments: what with.
            talks: whether it gets the end of a pipe as its last argument, to speak with the caller.
        """
        slot = self._free.pop(0)
        ours, theirs = multiprocessing.get_context("forkserver").Pipe() if talks else (None, None)
        given = arguments if theirs is None else (*arguments, theirs)
        worker = in_process(function, *given, threads=self._threads, slot=slot)
        if theirs is not None:
            theirs.close()
        self.running.append(Job(what, worker, slot, ours))

    def wait(self, timeout: float | None = None) -> Iterator[tuple[Job, Any]]:
        """Wait until functions say something or end, for so many seconds at most.

        Yields:
            A job with each thing that it said, and at its end with None, when its slot is free again.

        Raises:
            KeyboardInterrupt: the interrupt reached a process first.
            OSError: a process could not write a file of ours; its job is still among those running.
        """
        ready = set(multiprocessing.connection.wait([h for job in self.running for h in job.handles], timeout))
        for job in [job for job in self.running if job.handles & ready]:
            for message in job.said():
                yield job, message
            if job.worker.sentinel in ready:
                job.how = job.worker.ended()
                if job.pipe is not None:
                    job.pipe.close()
                self.running.remove(job)
                self._free.append(job.slot)
                yield job, None

    def close(self) -> None:
        """End what is running."""
        for job in self.running:
            job.worker.process.terminate()
        for job in self.running:
            job.worker.process.join()
