"""Whether a loss is the mean or the sum that it says it is, so that chunks and ranks can be weighed."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..objective import Chunk, LossOfOutputs, cuda_devices, cut, generator_states, loss_normalizer, loss_reduction
from .report import sentence
from .subject import Subject
from .untouched import modes_kept

Parts = tuple[float, list[float], list[float]]
"""Loss of a whole, of its two parts, and what a mean divides by in each part."""


def check_reduction(subject: Subject) -> None:
    """Compare a chunk's loss with the weighed losses of two unequal parts of it.

    First the loss alone, on parts of the same outputs; then model and loss, in eval mode, since batch statistics and
    random numbers differ between parts anyway.
    """
    program = subject.objective.program
    if not isinstance(program, LossOfOutputs):
        return
    if isinstance(subject.largest.counted, str):
        message = "Not checked: the examples cannot be counted, so that the batch cannot be cut."
        subject.find("reduction", "note", message)
        return
    if subject.largest.rows < 2:
        subject.find("reduction", "note", "One example cannot be parted, so mean and sum cannot be told apart.")
        return
    try:
        said = loss_reduction(program.loss)
    except ValueError:
        said = None
    with modes_kept(subject.model, training=False):
        alone = _loss_alone(subject)
        whole = _model_and_loss(subject)
    if alone is None and whole is None:
        subject.find("reduction", "note", "Not checked: the parts of a batch draw other random numbers than the whole.")
        return
    parts = alone or whole
    assert parts is not None
    fits = _fitting(subject, parts)
    if said is None:
        _find_missing(subject, fits)
    elif said in fits:
        message = f"Two parts of the batch add up to the whole, weighed as a {said}."
        subject.find("reduction", "ok", message, said)
    else:
        _find_wrong(subject, said, fits, parts, alone is not None)
    if alone is None or whole is None or not fits:
        return
    if not set(_fitting(subject, whole, 100 * subject.loss_of_rounding)) & set(fits):
        message = (
            "Even in eval mode the outputs of an example depend on the others in its chunk (batch statistics, a "
            "contrast, sorting), so that a batch cut into chunks is another function. Keep batches whole."
        )
        subject.find("rows", "warning", message)


def _find_missing(subject: Subject, fits: list[str]) -> None:
    loss = sentence(subject.loss_name)
    message = f"{loss} has no attribute `reduction`, which chunks and ranks need and one whole batch does not. "
    if fits:
        message += f"It behaves as a {fits[0]}: loss.reduction = {fits[0]!r} says so."
    else:
        message += (
            "It is neither a mean nor a sum over examples, so keep batches whole, or say what its mean divides by "
            "(loss.normalizer)."
        )
    subject.find("reduction", "note", message, fits[0] if fits else None)


def _find_wrong(subject: Subject, said: str, fits: list[str], parts: Parts, alone: bool) -> None:
    total, losses, counts = parts
    expected = _added(said, losses, counts)
    loss = sentence(subject.loss_name)
    message = f"{loss} says {said!r}, but two parts of the batch give {expected:.6g} and the whole {total:.6g}"
    if fits:
        message += f": it behaves as a {fits[0]}. Set loss.reduction = {fits[0]!r}."
    elif alone:
        message += (
            ". It divides by something else than the number of examples (or couples them), so chunks and ranks cannot "
            "be weighed. Say what it divides by (loss.normalizer), divide by the examples, or keep batches whole."
        )
    else:
        message += ". Chunks and ranks are weighed wrongly: the loss or the model couples the examples."
    subject.find("reduction", "defect", message, fits[0] if fits else None)


def _fitting(subject: Subject, parts: Parts, rounding: float = 0.0) -> list[str]:
    """The reductions under which the parts add up to the whole, up to rounding; by so much more where that is given."""
    total, losses, counts = parts
    allowed = subject.rounding * max(abs(total), *(abs(loss) for loss in losses), 1e-300) + rounding
    return [kind for kind in ("mean", "sum") if abs(_added(kind, losses, counts) - total) <= allowed]


def _added(kind: str, losses: list[float], counts: list[float]) -> float:
    if kind == "sum":
        return sum(losses)
    pairs = [(loss, count) for loss, count in zip(losses, counts, strict=True) if count]
    return sum(loss * count for loss, count in pairs) / max(sum(counts), 1e-300)


def _loss_alone(subject: Subject) -> Parts | None:
    """Parts of the outputs, where dimension 0 of each counts the examples and the loss draws no random numbers."""
    chunk = subject.largest
    _, outputs = subject.run(chunk)
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    if not leaves or any(leaf.shape[0] != chunk.rows for leaf in leaves):
        return None
    drawn = []
    devices = cuda_devices(subject.model)

    def loss(part: Chunk) -> tuple[Tensor, Any]:
        with subject.objective.random_numbers(0):
            before = generator_states(devices)
            found = subject.objective.evaluate_loss(part.inputs, part.targets, seed=None).detach()
            drawn.append(not all(map(torch.equal, before, generator_states(devices))))
        return found, part.inputs

    measured = _parted(subject, Chunk(outputs, chunk.targets, chunk.rows), loss)
    return None if any(drawn) else measured


def _model_and_loss(subject: Subject) -> Parts | None:
    """Parts of the data through model and loss, where neither draws random numbers in eval mode."""
    vars(subject).pop("draws", None)  # of the mode before
    draws = subject.draws
    vars(subject).pop("draws", None)
    return None if draws else _parted(subject, subject.largest, subject.run)


def _parted(subject: Subject, chunk: Chunk, loss: Any) -> Parts | None:
    third = max(chunk.rows // 3, 1)
    parts = [cut(chunk, 0, third), cut(chunk, third, chunk.rows)]
    try:
        pairs = [loss(part) for part in parts]
    except (RuntimeError, ValueError, IndexError):  # a loss or model that wants the batch whole
        return None
    own = subject.objective.program.loss
    counts = [loss_normalizer(own, part, outputs) for part, (_, outputs) in zip(parts, pairs, strict=True)]
    return float(loss(chunk)[0]), [float(part) for part, _ in pairs], counts
