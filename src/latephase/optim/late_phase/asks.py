"""What the library's own contestants ask of a model, its data, its memory and the time there is."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from ...curvature import linearize
from ...objective import Objective, available, is_exhaustion
from ..fresh_optimizers import FRESH
from ..newton import Direct, multiplications_per_second
from .contestant import Wants

LARGE_BATCH = 2048
"""Rows of late-phase Hessian-free steps, with half as many to judge and an eighth for the curvature."""
FACTOR_BATCH = 1024
"""Rows of K-FAC's steps on noisy data."""
FEWEST_STEPS = 100
"""Steps that must fit into what is left, for an optimizer whose steps can be foretold."""
MOST_DENSE = 10_000
"""Parameters up to which a dense inverse Hessian is tried: 0.8 GB in float64."""
SAMPLE = 64
"""Rows on which is looked how many rows of J~ an example gives."""
LAYERS = (nn.Linear, nn.Conv2d)


Ask = Callable[["Subject"], Wants | str]
"""The data that its steps want; or why it cannot take part."""


@dataclass(frozen=True)
class Subject:
    """What is to be gone on with.

    Attributes:
        objective: on data as the base has it.
        rows: of all training data; None where that is not known.
        batch: of the base's steps; None for all rows.
        deterministic: whether the base's steps all see the same data.
        seconds: that are left; None where the budget is in steps.
        clock: of these seconds. Where they are a process's own, what steps take is foretold in them, too: on a machine
            that others use more time passes.
    """

    objective: Objective
    rows: int | None
    batch: int | None
    deterministic: bool
    seconds: float | None
    clock: Callable[[], float] = time.perf_counter

    @cached_property
    def too_many_rows(self) -> str:
        """Why steps on all rows cannot be taken, measured once; empty where they can."""
        if self.deterministic:
            return ""
        if self.rows is None:
            return "takes all rows in a step, and how many there are is not known"
        if self.seconds is None:
            return ""
        seconds, rows = seconds_of_a_gradient(self.objective, self.clock)
        whole = seconds * self.rows / max(rows, 1)
        if FEWEST_STEPS * 2 * whole > self.seconds:
            return f"a gradient of all {self.rows:,} rows takes about {whole:.2g} s, too long for {self.seconds:.0f} s"
        return ""


def as_base(subject: Subject) -> Wants | str:
    """The base's own batches."""
    return Wants(subject.batch)


def fresh(name: str) -> Ask:
    """The base's own batches, for an optimizer of `FRESH` whose package is installed."""

    def ask(subject: Subject) -> Wants | str:
        try:
            FRESH[name].kind()
        except ValueError as error:
            return str(error)
        return Wants(subject.batch)

    return ask


def hessian_free(subject: Subject) -> Wants | str:
    """A large batch, half as many rows to judge, an eighth for the curvature; all rows where there is no noise."""
    if subject.deterministic:
        return Wants()
    rows = LARGE_BATCH if subject.rows is None else min(LARGE_BATCH, 2 * subject.rows // 3)
    if rows < 2 * SAMPLE:
        return f"{subject.rows} rows are too few to judge a step by others than it was made of"
    return Wants(rows, rows // 2, rows // 8)


def on_batches(subject: Subject) -> Wants | str:
    """The same, where there is noise."""
    return "is for data with noise, and all steps see the same" if subject.deterministic else hessian_free(subject)


def full_gradient(subject: Subject) -> Wants | str:
    """All rows, the curvature on a large batch of them, where every step of the base sees others."""
    if subject.deterministic:
        return "hessian_free sees all rows already"
    return subject.too_many_rows or Wants(None, 0, min(LARGE_BATCH, subject.rows or LARGE_BATCH))


def kfac(subject: Subject) -> Wants | str:
    """A batch, where most parameters are of layers that it knows."""
    model = subject.objective.model
    layered = sum(p.numel() for m in model.modules() if isinstance(m, LAYERS) for p in m.parameters(recurse=False))
    if 2 * layered < size_of(model):
        return "most parameters are not of linear or convolutional layers"
    if subject.deterministic:
        return Wants()
    return Wants(FACTOR_BATCH if subject.rows is None else min(FACTOR_BATCH, subject.rows))


def gauss_newton(subject: Subject) -> Wants | str:
    """All rows, where J~ or its products fit into memory and solves into the time."""
    if subject.too_many_rows:
        return subject.too_many_rows
    try:
        rows = _rows_of(subject)
    except Exception as error:
        return "there is no memory to look at its rows" if is_exhaustion(error) else f"has no rows: {error}"
    parameter = next(p for p in subject.objective.model.parameters() if p.requires_grad)
    plan = Direct().plan(rows, size_of(subject.objective.model), parameter.dtype)
    free = available(parameter.device) // 2
    if plan.bytes > free:
        return f"{plan}, but {free / 1e9:.1f} GB may be used"
    each = plan.multiplications / multiplications_per_second(parameter.dtype, parameter.device, subject.clock)
    if subject.seconds is not None and FEWEST_STEPS * each > subject.seconds:
        return f"{plan}: about {each:.2g} s, too long for {subject.seconds:.0f} s"
    return Wants()


def self_scaled_broyden(subject: Subject) -> Wants | str:
    """All rows, of a model that is small enough for a dense matrix."""
    size = size_of(subject.objective.model)
    if size > MOST_DENSE:
        return f"its inverse Hessian is dense: {size:,} parameters, more than {MOST_DENSE:,}"
    return subject.too_many_rows or Wants()


def lbfgs(subject: Subject) -> Wants | str:
    """All rows."""
    return subject.too_many_rows or Wants()


def _rows_of(subject: Subject) -> int:
    """Rows of J~ of all data, counted on a few examples where there are many."""
    objective = subject.objective
    have = sum(chunk.rows for chunk in objective.chunks)
    if subject.deterministic or have <= SAMPLE:
        part, scale = objective, 1.0 if subject.deterministic else (subject.rows or have) / max(have, 1)
    else:
        part, scale = objective.subsample(SAMPLE, torch.Generator().manual_seed(0)), (subject.rows or have) / SAMPLE
    return round(linearize(part).row_count() * scale)


def size_of(model: nn.Module) -> int:
    """P: trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def seconds_of_a_gradient(objective: Objective, clock: Callable[[], float]) -> tuple[float, int]:
    """Seconds of one gradient, the faster of two, and its rows; parameters, gradients and buffers stay as they are."""
    found = []
    for _ in range(2):
        started = clock()
        _ = linearize(objective).gradient
        found.append(clock() - started)
    return min(found), sum(chunk.rows for chunk in objective.chunks)
