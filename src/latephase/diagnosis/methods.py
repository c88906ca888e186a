"""Which methods fit in memory, and about how long a step of each takes."""

import time
from typing import NamedTuple

import torch

from ..curvature import linearize
from ..objective import available
from ..optim import Direct, DirectPlan, multiplications_per_second
from .report import bytes_in_words, seconds_in_words
from .subject import Subject

ITERATIONS = 50
"""Of conjugate gradients in the Hessian-free step that is told of: a usual number late in training."""
DIRECT_GRADIENTS = 5.0
"""What a Gauss-Newton step takes beside matrix and solve, in gradients: linearisation and rows two, losses at two trial
points one, the second directional derivative of geodesic acceleration two."""
DIRECT_SOLVES = 1.5
"""Decompositions in it: one or two dampings are tried in most steps."""
LARGEST_MATRIX = 10_000
"""Parameters up to which a pass over a dense inverse Hessian is tried."""


class Method(NamedTuple):
    """A method, as a table tells it.

    Attributes:
        name: of the optimizer.
        seconds: about so many for a step.
        bytes: that it needs beside a gradient's.
        fits: whether half of the free memory holds them.
    """

    name: str
    seconds: float
    bytes: int
    fits: bool


def check_methods(subject: Subject) -> None:
    """Memory and time of a step of each method, from what was measured of gradients and products."""
    gradient, product = (subject.numbers.get(f"seconds_per_{what}") for what in ("gradient", "product"))
    if gradient is None or product is None:
        return
    found = methods(subject, gradient, product)
    told = [
        f"{each.name} {seconds_in_words(each.seconds)} and {bytes_in_words(each.bytes)}"
        + ("" if each.fits else ", which does not fit")
        for each in found
    ]
    message = f"A step takes about: {'; '.join(told)} (HessianFree with {ITERATIONS} iterations, L-BFGS for each)."
    subject.find("methods", "ok", message, tuple(tuple(each) for each in found))


def methods(subject: Subject, gradient: float, product: float) -> list[Method]:
    """The methods.

    Args:
        subject: under check.
        gradient: seconds of one.
        product: seconds of one with the Gauss-Newton matrix.
    """
    size, unit = subject.space.size, subject.space.dtype.itemsize
    room = available(subject.space.device) // 2
    vectors = 12 * size * unit
    found = [
        ("HessianFree", 3 * gradient + ITERATIONS * product, vectors),
        ("L-BFGS", 1.3 * gradient, 200 * size * unit),
    ]
    plan = _plan(subject)
    if plan is not None:
        speed = multiplications_per_second(subject.space.dtype, subject.space.device)
        matrix = DIRECT_SOLVES * plan.multiplications / speed
        found.insert(0, ("GaussNewton", DIRECT_GRADIENTS * gradient + matrix, plan.bytes))
    square = 2 * size * size * unit
    if size <= LARGEST_MATRIX and square <= room:
        found.append(("SelfScaledBroyden", 1.3 * gradient + 4 * _seconds_of_a_pass(subject), square))
    return [Method(name, seconds, needed, needed <= room) for name, seconds, needed in found]


def _plan(subject: Subject) -> DirectPlan | None:
    """What a direct solve takes; None where it was found that there are no rows, or that it does not fit."""
    if not any(finding.name == "rows" and finding.severity == "ok" for finding in subject.findings):
        return None
    count = linearize(subject.objective, method="double_backward").row_count()
    return Direct().plan(count, subject.space.size, subject.space.dtype, available(subject.space.device) // 4)


def _seconds_of_a_pass(subject: Subject) -> float:
    """Of a product of a matrix [P, P] with a vector, the fastest of four."""
    size = subject.space.size
    matrix = torch.ones(size, size, dtype=subject.space.dtype, device=subject.space.device)
    found = []
    for _ in range(4):
        started = time.perf_counter()
        float((matrix @ matrix[0])[0])  # waits for the device
        found.append(time.perf_counter() - started)
    return min(found)
