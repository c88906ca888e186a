"""What gradients, products and steps need of memory and time, and the chunks that fit."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature import damped, linearize
from ..objective import Chunk, Objective, available, is_exhaustion, largest_microbatch, peak_bytes
from ..solve import conjugate_gradient
from .report import bytes_in_words, ratio_in_words, seconds_in_words
from .subject import Subject

ITERATIONS = 10
"""Of conjugate gradients in the step that is measured."""

ROUNDS = 5
"""Of timing, at most; the medians are taken over them."""

SECONDS = 4.0
"""After so many no further round of timing begins."""


def check_fit(subject: Subject, whole: Objective) -> None:
    """The largest chunk that fits half of the free memory; goes on with such chunks where the given ones do not.

    Args:
        subject: under check.
        whole: the objective before it was cut into chunks.
    """
    if subject.free_form:
        return
    free = available(subject.space.device)
    try:
        rows = largest_microbatch(whole, free // 2)
    except Exception:  # of the user's model; the forward pass says what is wrong with it
        return
    subject.numbers["suggested_microbatch_size"] = rows
    most = max(chunk.rows for chunk in whole.chunks)
    held = subject.largest.rows
    half = f"half of the {bytes_in_words(free)} free"
    if rows >= held:
        message = f"{'The whole batch' if len(subject.objective.chunks) == 1 else f'A chunk of {held:,}'} fits {half}"
        subject.find("chunk size", "ok", f"{message}{f', and so does one of {rows:,}' if held < most else ''}.", rows)
        return
    message = f"A step on {held:,} examples at once does not fit {half}: use microbatch_size={rows}."
    norms = [module for module in whole.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if any(module.training for module in norms):
        message += " Batch norm in training mode makes that another function."
    subject.find("chunk size", "warning", message, rows)
    subject.use_chunks(rows)


def check_memory(subject: Subject) -> None:
    """Peak memory of a gradient and of a step."""
    device = subject.space.device
    try:
        gradient = peak_bytes(lambda: _gradient(subject), device)
        step = peak_bytes(lambda: _step(subject), device)
    except (RuntimeError, MemoryError) as error:
        if not is_exhaustion(error):
            raise
        message = "A step does not fit into memory; use a smaller microbatch_size."
        subject.find("memory", "defect", message)
        return
    subject.numbers |= {"gradient_bytes": gradient, "step_bytes": step}
    how = "measured" if device.type == "cuda" else "an estimate: what operators use inside is not seen"
    message = (
        f"A gradient needs {bytes_in_words(gradient)}, a step of {ITERATIONS} CG iterations {bytes_in_words(step)} "
        f"beside parameters and data ({how})."
    )
    subject.find("memory", "ok", message, (gradient, step))


def check_time(subject: Subject) -> None:
    """Seconds of a gradient, a product and a step, medians over rounds."""
    curved = linearize(subject.objective, at_once=True)
    v = subject.random_vector(1)
    times = _medians(
        {
            "gradient": lambda: _gradient(subject),
            "product": lambda: curved.matvec(v),
            "step": lambda: _step(subject),
        },
        subject.space.device,
    )
    gradient, product, step = times.values()
    subject.numbers |= {"seconds_per_gradient": gradient, "seconds_per_product": product, "seconds_per_step": step}
    per_product, per_step = ratio_in_words(product / gradient), ratio_in_words(step / gradient)
    message = (
        f"Gradient {seconds_in_words(gradient)}, product {seconds_in_words(product)} ({per_product} gradients), step "
        f"of {ITERATIONS} CG iterations {seconds_in_words(step)} ({per_step} gradients)."
    )
    subject.find("time", "ok", message, (gradient, product, step))


def _gradient(subject: Subject) -> None:
    """The gradient as any training computes it; moves the model's buffers."""

    def term(chunk: Chunk, index: int) -> tuple[Tensor, ...]:
        loss, _ = subject.objective.plain_pass(chunk, first_order=True)
        return torch.autograd.grad(loss, subject.space.parameters, materialize_grads=True)

    with torch.enable_grad():
        subject.objective.sum(term)


def _step(subject: Subject) -> None:
    """All that a Hessian-free step computes, written nowhere: ten iterations and four losses of trial points."""
    curved = linearize(subject.objective, at_once=True)
    found = conjugate_gradient(
        damped(curved.matvec, 1.0),
        -curved.gradient,
        max_iter=ITERATIONS,
        tolerance=0.0,
        nonpositive_curvature="absolute",
    )
    theta = subject.space.values()
    for share in (1.0, 0.95, 0.9, 0.85):
        subject.value(theta + share * found.solution)


def _medians(calls: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """Median seconds of each call, one after another in each round, so that what else happens falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    for turn in range(-1, ROUNDS):  # the first does not count
        if turn > 0 and time.perf_counter() - started > SECONDS:
            break
        for name, call in calls.items():
            before = _now(device)
            call()
            if turn >= 0:
                times[name].append(_now(device) - before)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
