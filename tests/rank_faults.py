"""What may happen to one rank at any moment of a step, and how it is made to happen."""

import contextlib
import functools
import inspect
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import latephase
from latephase import AdamQLR, Objective
from latephase.optim.parts.transaction import Transaction
from rank_cases import OPTIMIZERS, SHARES, data, flat, network
from rank_processes import message_of, outcomes_of_ranks

STEPS = 3
TIMEOUTS = {"kill": 30.0, "too late": 6.0}
"""Seconds of the process group's own timeout; with all other faults nobody is waited for in vain."""
PATIENT = 120.0
LATE = {"late": 1.0, "too late": 2.5 * TIMEOUTS["too late"]}
PACKAGE = str(Path(latephase.__file__).parent) + os.sep
KINDS = ("raise", "interrupt", "kill", "nan", "option", "dtype", "model", "optimizer", "late", "too late")
DEADLY = ("kill", "too late")
"""After these the group cannot be used any more."""
LASTING = ("dtype", "model", "optimizer")
"""These do not go away when the step is taken again."""


@dataclass(frozen=True)
class Fault:
    """What happens to which rank, and when.

    Attributes:
        kind: one of `KINDS`.
        rank: whose.
        count: of all ranks.
        optimizer: that all have.
        step: in which, counted from 0.
        at: after which share of the step's calls.
    """

    kind: str
    rank: int
    count: int
    optimizer: str
    step: int = 1
    at: float = 0.5


@dataclass
class Strikes:
    """Within, something is done at the k-th call of a function of the library, by Python's profiler.

    Attributes:
        k: 0 counts only.
        action: it, or None.
        inside: whether only calls from the transaction's beginning to its end count, or all.
    """

    k: int
    action: Callable[[], None] | None
    inside: bool
    count: int = 0
    open: bool = False
    place: str = ""
    skipped: set[Any] = field(default_factory=lambda: {Transaction._restore.__code__})

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE) or code in self.skipped:
            return
        if code is Transaction._begin.__code__:
            self.open = True
        elif code is Transaction.__exit__.__code__:
            self.open = False
        # A generator is entered once more where it is closed, and nobody would catch what is raised there.
        if code.co_flags & inspect.CO_GENERATOR or (self.inside and not self.open):
            return
        self.count += 1
        if self.count == self.k and self.action is not None:
            self.place = code.co_qualname
            sys.setprofile(None)
            self.action()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)


def raise_(error: BaseException) -> None:
    raise error


def action_of(kind: str) -> Callable[[], None] | None:
    """What happens at a call; None where the fault is in what the rank is given."""
    return {
        "raise": lambda: raise_(OSError("the disk is gone")),
        "interrupt": lambda: raise_(KeyboardInterrupt()),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "late": lambda: time.sleep(LATE["late"]),
        "too late": lambda: time.sleep(LATE["too late"]),
    }.get(kind)


def model_of(fault: Fault, own: bool) -> nn.Module:
    if own and fault.kind == "model":
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    return network().float() if own and fault.kind == "dtype" else network()


def suffer(fault: Fault, rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    """Steps of which one meets the fault, and is taken again where it failed; what was said and where it led."""
    own, model = rank == fault.rank, model_of(fault, rank == fault.rank)
    other = own and fault.kind == "optimizer"
    optimizer = AdamQLR(model.parameters()) if other else OPTIMIZERS[fault.optimizer](model)
    found: dict[str, Any] = {"messages": [], "seconds": 0.0, "place": "", "restored": True, "parameters": []}
    torch.manual_seed(7)
    taken, calls, waits = 0, 0, True
    while taken < STEPS and len(found["messages"]) < 2:
        hit = own and waits and taken == fault.step
        strikes = Strikes(int(fault.at * calls) + 1 if hit else 0, action_of(fault.kind), _inside(fault))
        watched = strikes.action is not None and own and taken in (fault.step - 1, fault.step)
        objective, before, started = objective_of(fault, model, rank, group, hit), flat(model), time.monotonic()
        with contextlib.ExitStack() as around:
            if hit and fault.kind == "option":
                around.enter_context(halved(optimizer))
            if watched:
                around.enter_context(strikes.watching())
            message = message_of(functools.partial(optimizer.step, objective))
        calls, waits = calls if hit else strikes.count, waits and not hit
        found["place"] = found["place"] or strikes.place
        if message:
            found["messages"].append(message)
            found["seconds"] = time.monotonic() - started
            found["restored"] = found["restored"] and torch.equal(before, flat(model))
            if fault.kind in (*DEADLY, *LASTING):
                break
        else:
            taken += 1
            found["parameters"].append(flat(model))
    return found


def _inside(fault: Fault) -> bool:
    """An exception counts from where a step has begun; who is killed or late may be so at any call."""
    return fault.kind in ("raise", "interrupt")


def objective_of(fault: Fault, model: nn.Module, rank: int, group: dist.ProcessGroup, hit: bool) -> Objective:
    x, y = data(SHARES[fault.count][rank])
    x, y = x.to(next(model.parameters()).dtype), y.to(next(model.parameters()).dtype)
    if hit and fault.kind == "nan":
        x = x.clone()
        x[0, 1] = float("nan")
    return Objective(model, nn.MSELoss(), (x, y), weight_decay=0.05, process_group=group)


@contextlib.contextmanager
def halved(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within, the learning rate is another, as a scheduler of one rank would have it."""
    for each in optimizer.param_groups:
        each["lr"] *= 0.5
    yield
    for each in optimizer.param_groups:
        each["lr"] *= 2.0


def child(rank: int, folder: str, count: int, faults: list[Fault], timeout: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count, timeout=timedelta(seconds=timeout)
    )
    found = {str(number): suffer(fault, rank, dist.group.WORLD) for number, fault in enumerate(faults)}
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    if not any(fault.kind in DEADLY for fault in faults):
        dist.barrier()
        dist.destroy_process_group()


def undisturbed(count: int, names: list[str], folder: Path) -> dict[str, list[Tensor]]:
    """Of each optimizer the parameters after each step, of ranks to whom nothing happens."""
    faults = [Fault("none", 0, count, name) for name in names]
    found = run_faults(faults, folder, PATIENT)[0]
    return {name: first["parameters"] for name, first in zip(names, (each[0] for each in found), strict=True)}


def run_faults(faults: list[Fault], folder: Path, timeout: float) -> tuple[list[list[Any]], list[int | None]]:
    """What each rank says of each fault, and how its process ended; a deadly fault has a group for itself."""
    count = faults[0].count
    place = Path(tempfile.mkdtemp(dir=folder))
    run = functools.partial(child, count=count, faults=faults, timeout=timeout)
    results, codes = outcomes_of_ranks(run, place, count, 60.0 + 4 * timeout + 5.0 * len(faults))
    return [[each and each[str(number)] for each in results] for number in range(len(faults))], codes
