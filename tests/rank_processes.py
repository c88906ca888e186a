"""Several processes as ranks of a process group, for the tests."""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

PRELOADED = (
    *("torch", "torch._dynamo", "torch._decomp.decompositions_for_jvp"),
    *("latephase", "latephase.optim.kfac"),
)
"""Whose imports take seconds."""


def forked_from_imports() -> str:
    """The start method of processes: forked from one that has imported what they need and computed nothing."""
    multiprocessing.set_forkserver_preload([*PRELOADED])
    return "forkserver"


def message_of(action: Callable[[], Any]) -> str:
    """The type and message of the error that an action raises, a KeyboardInterrupt included; "" where none is."""
    try:
        action()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run_rank(rank: int, child: Callable[[int, str], None], folder: str) -> None:
    """child(rank, folder), whose process ends with its last line.

    Python's own end of a process runs the destructors of C++ libraries while threads of gloo and of torch's pool may
    still be there: now and then that calls std::terminate, and a rank that has written its
    result counts as killed by SIGABRT. An exception is left to mp.spawn, which takes it to the parent.
    """
    child(rank, folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def results_of_ranks(child: Callable[..., None], folder: Path, ranks: int, timeout: float) -> list[dict[str, Any]]:
    """What each rank left as folder/rank{number}.pt, child(rank, folder) having run in a process of its own.

    Args:
        child: a function of the test module's top level.
        folder: an empty one.
        ranks: how many processes.
        timeout: seconds after which they count as hanging, and are killed.
    """
    context = mp.start_processes(run_rank, (child, str(folder)), ranks, join=False, start_method=forked_from_imports())
    assert context is not None
    end, finished = time.monotonic() + timeout, False
    try:
        while not finished and time.monotonic() < end:
            finished = context.join(timeout=1)
    finally:
        for process in context.processes:
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
    assert finished, "the ranks hang"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def outcomes_of_ranks(
    child: Callable[..., None], folder: Path, ranks: int, timeout: float
) -> tuple[list[dict[str, Any] | None], list[int | None]]:
    """As `results_of_ranks`, of ranks that may be killed: what each left, None where nothing, and their exit codes.

    Raises:
        AssertionError: one is still there after so many seconds, and is killed.
    """
    context = multiprocessing.get_context(forked_from_imports())
    processes = [context.Process(target=run_rank, args=(rank, child, str(folder))) for rank in range(ranks)]
    for process in processes:
        process.start()
    end, hanging = time.monotonic() + timeout, []
    for rank, process in enumerate(processes):
        process.join(max(end - time.monotonic(), 0))
        if process.is_alive():
            hanging.append(rank)
            process.kill()
            process.join()
    assert not hanging, f"ranks {hanging} hang"
    paths = [folder / f"rank{rank}.pt" for rank in range(ranks)]
    found = [torch.load(path, weights_only=True) if path.exists() else None for path in paths]
    return found, [process.exitcode for process in processes]
