"""What each chunk of an objective weighs: known, declared, or shown by comparison, and never a guess."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .chunks import loss_normalizer, loss_reduction, normalizer_is_known, wants_outputs

DECLARE = (
    "declare what the loss's mean divides by, as a function of the outputs and targets of a chunk, for example "
    "loss.normalizer = lambda outputs, targets: (targets != -100).sum(), or loss.normalizer = len for a plain mean "
    "over the rows"
)
ROUNDING = 200
"""Whole and parts may differ by so many units of rounding: they are sums of rounded terms in another order."""


def weights_of(objective: Any) -> list[float]:
    """The weight w_c = n_c / sum n of each of this rank's chunks, where there are several chunks or ranks.

    With reduction "sum" they are one. The mean of torch's own losses divides by what `chunks.row_normalizers` counts;
    that of any other loss by what its attribute `normalizer` says. Where it says nothing, the mean is supposed to be
    over the rows, and that is tried on this very data: the loss of all outputs at once must be the weighed sum of the
    chunks' losses, at the model's outputs and at others.

    Args:
        objective: an `Objective`.

    Raises:
        ValueError: the loss does not say how it reduces; or no mean over the rows, or not to be compared; or no target
            counts.
    """
    loss, chunks = objective.program.loss, objective.chunks
    if loss_reduction(loss) == "sum":
        return [1.0] * len(chunks)
    known = normalizer_is_known(loss)
    if not known and objective.reduce.size > 1:
        raise ValueError(f"several ranks must be weighed, and the loss is not one of torch's own: {DECLARE}")
    outputs: list[Any] = [None] * len(chunks)
    if not known or wants_outputs(loss):
        outputs = _outputs(objective)
    counts = [loss_normalizer(loss, chunk, part) for chunk, part in zip(chunks, outputs, strict=True)]
    device = next(objective.model.parameters()).device
    (total,) = objective.reduce.sum([torch.tensor(sum(counts), dtype=torch.float64, device=device)])
    if not total > 0:
        raise ValueError("no target counts: the loss ignores every target of the batch")
    weights = [count / float(total) for count in counts]
    if not known:
        _compare(objective, outputs, weights)
    return weights


def joined(parts: Sequence[Any]) -> Any:
    """The outputs, or targets, of several chunks as those of one: tensors are joined along dimension 0.

    Raises:
        ValueError: something in them cannot be joined.
    """
    leaves, structures = zip(*(tree_flatten(part) for part in parts), strict=True)
    try:
        if any(structure != structures[0] for structure in structures):
            raise ValueError("their structure differs")
        whole = [_join(pieces) for pieces in zip(*leaves, strict=True)]
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"the chunks cannot be joined ({str(error).splitlines()[0]})") from error
    return tree_unflatten(whole, structures[0])


def _join(pieces: Sequence[Any]) -> Any:
    if all(isinstance(piece, Tensor) and piece.dim() > 0 for piece in pieces):
        return torch.cat(list(pieces))
    if all(isinstance(piece, Tensor) for piece in pieces):
        same = all(torch.equal(piece, pieces[0]) for piece in pieces)
    else:
        same = all(piece is pieces[0] or bool(piece == pieces[0]) for piece in pieces)
    if not same:
        raise ValueError(f"a {type(pieces[0]).__name__} has no rows")
    return pieces[0]


def _outputs(objective: Any) -> list[Any]:
    """What the loss gets of each chunk, at the present parameters."""
    point = {name: p.detach() for name, p in objective.model.named_parameters()}
    found: list[Any] = []

    def keep(outputs: Any) -> Any:
        leaves, structure = tree_flatten(outputs)
        found.append(tree_unflatten([x.detach().clone() if isinstance(x, Tensor) else x for x in leaves], structure))
        return outputs

    for index, chunk in enumerate(objective.chunks):
        with torch.enable_grad(), objective.random_numbers(index):
            objective.forward_pass(chunk, point, objective.buffers(), between=keep)
    return found


def _compare(objective: Any, outputs: list[Any], weights: list[float]) -> None:
    """Refuse where the loss of the whole is not the weighed sum of the chunks' losses."""
    for shaken in (False, True):
        parts = [_shaken(part, index) for index, part in enumerate(outputs)] if shaken else outputs
        try:
            whole, losses, eps = _losses(objective, parts)
        except ValueError as error:
            raise ValueError(
                f"whether the loss takes a mean over the rows cannot be told: {error}; {DECLARE}"
            ) from error
        total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        size = max(abs(whole), *(abs(loss) for loss in losses))
        # Not finite at outputs of the model: the step itself will say so. At shaken ones: outside of the loss's domain.
        if abs(whole - total) > ROUNDING * eps * size:
            where = " (at outputs changed at random)" if shaken else ""
            raise ValueError(
                f"the loss is no mean over the rows: of all {len(losses)} chunks at once it is {whole:.8g}, of the "
                f"chunks weighed by their rows {total:.8g}{where}; {DECLARE}"
            )


def _losses(objective: Any, outputs: list[Any]) -> tuple[float, list[float], float]:
    """The loss of the whole, of each chunk, and the machine epsilon they have."""
    loss_of, targets = objective.program.loss_of, [chunk.targets for chunk in objective.chunks]
    everything, all_targets = joined(outputs), joined(targets)
    with torch.no_grad(), objective.random_numbers(0):
        whole = loss_of(everything, all_targets)
        losses = [float(loss_of(part, target)) for part, target in zip(outputs, targets, strict=True)]
    return float(whole), losses, torch.finfo(whole.dtype).eps


def _shaken(outputs: Any, seed: int) -> Any:
    """Outputs changed at random: at special ones, all zero say, every chunk may have the same loss by chance."""
    random = torch.Generator().manual_seed(seed)

    def change(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            return leaf
        noise = torch.rand(leaf.shape, generator=random, dtype=torch.float64).to(leaf.device, leaf.dtype)
        return leaf + 0.1 * noise * (1 + leaf.abs())

    leaves, structure = tree_flatten(outputs)
    return tree_unflatten([change(leaf) for leaf in leaves], structure)
