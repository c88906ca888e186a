"""Traces kept between steps: which one serves a chunk, and whether it still tells the truth."""

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ...objective import is_exhaustion
from ..chunk_task import ChunkTask
from .operations import CannotTrace
from .signature import signature
from .trace import Trace, TracedPass

MAX_TRACES = 16
"""Traces kept for each model, the least recently used going first: batch and curvature batch, their last and smaller
chunks, train and eval mode, twice."""

Kept = tuple["OrderedDict[Hashable, _Entry]", list[tuple[Trace | None, str | None, int]]]

Reference = Callable[[], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""() -> loss and product of the same chunk by a second method."""


class _Entry:
    """What is known about one signature: that it was seen, its trace, or why there is none."""

    def __init__(self):
        self.trace: Trace | None = None
        self.failure: str | None = None
        self.uses = 0


def kept_traces(model: nn.Module) -> "Kept":
    """What is known of a model's shapes, to be put back."""
    known = _entries.get(model, OrderedDict())
    return known.copy(), [(entry.trace, entry.failure, entry.uses) for entry in known.values()]


def put_back(model: nn.Module, kept: "Kept") -> None:
    """Know of a model's shapes what was known before."""
    known, contents = kept
    for entry, content in zip(known.values(), contents, strict=True):
        entry.trace, entry.failure, entry.uses = content
    _entries[model] = known


def set_aside(model: nn.Module) -> Any:
    """Forget what is known of a model's shapes; what that was, for `bring_back`."""
    return _entries.pop(model, None)


def bring_back(model: nn.Module, known: Any) -> None:
    """Know of a model's shapes again what `set_aside` returned, and nothing else."""
    _entries.pop(model, None)
    if known is not None:
        _entries[model] = known


_entries: "weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, _Entry]]" = weakref.WeakKeyDictionary()


def traced_pass(task: ChunkTask, reference: Reference, at_once: bool = False) -> TracedPass | str:
    """The chunk's pass by a trace, or in words why there is none.

    A shape is traced when it is seen for the second time: one that comes once is cheaper without. A new trace is
    compared with a second method, in loss and in the product with a random vector. Where the code reaches what no
    signature can see (a clock, a file, a function in C), every later use is compared in the loss, so that nothing stale
    is used; elsewhere uses number 2, 4, 8, ... are. A trace that disagrees is not used again.

    Args:
        task: the chunk, where, and which products.
        reference: the second method.
        at_once: trace a shape when it is seen for the first time. Default False.
    """
    model = task.objective.model
    known = _entries.setdefault(model, OrderedDict())
    try:
        key, opaque = signature(task)
    except CannotTrace as error:
        return str(error)
    seen = key in known
    entry = known.setdefault(key, _Entry())
    known.move_to_end(key)
    while len(known) > MAX_TRACES:
        known.popitem(last=False)
    if entry.trace is None and entry.failure is None and (seen or at_once):
        try:
            entry.trace = Trace(task)
        except CannotTrace as error:
            entry.failure = str(error)
    if entry.trace is None:
        return entry.failure or "seen for the first time"
    done = entry.trace.run(task)
    entry.uses += 1
    if opaque or entry.uses & (entry.uses - 1) == 0:
        entry.failure = _disagreement(done, task, reference, products=entry.uses == 1)
    if entry.failure is None:
        return done
    entry.trace = None
    warnings.warn(f"{type(model).__name__} is not traced: {entry.failure}", RuntimeWarning, stacklevel=2)
    return entry.failure


def _disagreement(done: TracedPass, task: ChunkTask, reference: Reference, products: bool) -> str | None:
    """What differs between a trace and the reference, in words; None where nothing does."""
    loss, product = reference()
    space = task.space
    eps = done.trace.precision
    tolerance = 3 * eps**0.5  # both are right to rounding; a wrong one is off by much more than half of the digits
    if not _close(done.loss, loss, min(tolerance, 1000 * eps)):
        return (
            f"its loss is {float(loss):.6g}, that of the trace {float(done.loss):.6g}: it reads something that changed"
        )
    if products:
        v = torch.randn(space.size, dtype=space.dtype, device=space.device, generator=_generator(space.device))
        try:
            expected = product(v)
        except (RuntimeError, NotImplementedError) as error:
            if is_exhaustion(error):
                raise
            return None  # a layer without second derivatives: there is no second method
        traced = space.flatten(done.product(space.unflatten(v, task.dtype)))
        if not _close(traced, expected, tolerance):
            error = float((traced - expected).norm() / expected.norm())
            return f"its products differ from those of the trace by {error:.1g}"
    return None


def _close(x: Tensor, y: Tensor, tolerance: float) -> bool:
    """Whether two results agree; where one has overflowed, by whatever order of operations, nothing can be told."""
    x, y = x.double(), y.double()
    if not bool(x.isfinite().all() & y.isfinite().all()):
        return True
    return bool((x - y).norm() <= tolerance * y.norm())


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)
