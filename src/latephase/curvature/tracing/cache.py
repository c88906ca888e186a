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

MOST_COURSES = 4
"""Traces of one shape, for what a model reads of its data; one whose data reads otherwise at every step has none."""

OTHERWISE = "whole numbers are read of the data into Python that are others at every step"

Kept = tuple["OrderedDict[Hashable, _Entry]", list[list[tuple["_Course", Trace | None, str | None, int]]]]

Reference = Callable[[], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""() -> loss and product of the same chunk by a second method."""


class _Course:
    """What is known about a course that a computation takes: its trace, or why there is none.

    Attributes:
        trace: that of the course.
        failure: why there is none; for all data of the signature.
        uses: how often the trace was used.
    """

    def __init__(self, failure: str | None = None):
        self.trace: Trace | None = None
        self.failure = failure
        self.uses = 0


class _Entry:
    """What is known about one signature: that it was seen, and the courses that its data took."""

    def __init__(self):
        self.courses = [_Course()]

    def course_of(self, task: ChunkTask) -> tuple[_Course, TracedPass | None]:
        """The course that a chunk takes, with its pass where there is a trace."""
        for course in self.courses:
            done = None if course.trace is None else course.trace.run(task)
            if course.trace is None or done is not None:
                return course, done
        self.courses.append(_Course(OTHERWISE if len(self.courses) == MOST_COURSES else None))
        return self.courses[-1], None


class _Refusal:
    """Why a model and its loss could not be described, and how often to take that for granted before trying again.

    The attempt costs tens of milliseconds where they reach a whole package. It is made at uses 1, 3, 7, 15, ..., so
    that what was mended is found out; until then products are right, and slower.
    """

    def __init__(self):
        self.reason, self.times, self.left = "", 0, 0

    def once_more(self, reason: str) -> str:
        """Note another failure; the reason."""
        self.reason, self.times = reason, self.times + 1
        self.left = 2 ** min(self.times, 16) - 1
        return reason


def kept_traces(model: nn.Module) -> "Kept":
    """What is known of a model's shapes, to be put back."""
    known = _entries.get(model, OrderedDict())
    return known.copy(), [[(x, x.trace, x.failure, x.uses) for x in entry.courses] for entry in known.values()]


def put_back(model: nn.Module, kept: "Kept") -> None:
    """Know of a model's shapes what was known before."""
    known, contents = kept
    for entry, content in zip(known.values(), contents, strict=True):
        entry.courses = [course for course, *_ in content]
        for course, trace, failure, uses in content:
            course.trace, course.failure, course.uses = trace, failure, uses
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
_refusals: "weakref.WeakKeyDictionary[nn.Module, dict[Hashable, _Refusal]]" = weakref.WeakKeyDictionary()


def traced_pass(task: ChunkTask, reference: Reference, at_once: bool = False, insist: bool = False) -> TracedPass | str:
    """The chunk's pass by a trace, or in words why there is none.

    A shape is traced when it is seen for the second time: one that comes once is cheaper without. A new trace is
    compared with a second method, in loss and in the product with a random vector. Where the code reaches what no
    signature can see (a clock, a file, a function in C), every later use is compared in the loss, so that nothing stale
    is used; elsewhere uses number 2, 4, 8, ... are. A trace that disagrees is not used again. Where whole numbers or
    truth values of the data are read into Python, each course that the computation takes has a trace of its own.

    Args:
        task: the chunk, where, and which products.
        reference: the second method.
        at_once: trace a shape when it is seen for the first time. Default False.
        insist: try to describe the model even if that failed a moment ago. Default False.
    """
    model = task.objective.model
    known = _entries.setdefault(model, OrderedDict())
    refused = _refusals.setdefault(model, {}).setdefault(_program_of(task), _Refusal())
    if refused.left and not insist:
        refused.left -= 1
        return refused.reason
    try:
        key, opaque = signature(task)
    except CannotTrace as error:
        return refused.once_more(str(error))
    refused.times = refused.left = 0
    seen = key in known
    entry = known.setdefault(key, _Entry())
    known.move_to_end(key)
    while len(known) > MAX_TRACES:
        known.popitem(last=False)
    course, done = entry.course_of(task)
    if done is None and course.failure is None and (seen or at_once):
        course.trace, course.failure = _made(task)
        done = None if course.trace is None else course.trace.run(task)
    if done is None:
        return course.failure or "seen for the first time"
    course.uses += 1
    if opaque or course.uses & (course.uses - 1) == 0:
        course.failure = _disagreement(done, task, reference, products=course.uses == 1)
    if course.failure is None:
        return done
    course.trace = None
    warnings.warn(f"{type(model).__name__} is not traced: {course.failure}", RuntimeWarning, stacklevel=2)
    return course.failure


def _program_of(task: ChunkTask) -> Hashable:
    """What tells a model's losses apart, where they themselves are made anew at every step."""
    program = task.objective.program
    return tuple(getattr(part, "__code__", type(part)) for part in (program.loss, program.forward))


def _made(task: ChunkTask) -> tuple[Trace | None, str | None]:
    """A trace of the chunk, or in words why there is none."""
    try:
        return Trace(task), None
    except CannotTrace as error:
        return None, str(error)


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
