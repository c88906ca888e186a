"""What each chunk of an objective weighs: known, declared, or shown by comparison, and never a guess."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .data import Chunk, cut
from .randomness import cuda_devices, forked
from .reduction import (
    is_elementwise,
    is_torchs,
    loss_normalizer,
    loss_reduction,
    normalizer_is_known,
    setting,
    wants_outputs,
)

Evaluate = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> loss, without any effect that stays."""

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
    device = next(objective.model.parameters()).device
    objective.program.several = True
    if loss_reduction(loss) == "sum":
        if not is_torchs(loss):
            check_sum(objective.evaluate_loss, _outputs(objective)[0], chunks)
        return [0.0 if objective.idle else 1.0] * len(chunks)
    known = normalizer_is_known(loss)
    if not known and objective.reduce.size > 1:
        raise ValueError(f"several ranks must be weighed, and the loss is not one of torch's own: {DECLARE}")
    outputs: list[Any] = [None] * len(chunks)
    others = outputs
    if not known or wants_outputs(loss):
        outputs, others = _outputs(objective, elsewhere=wants_outputs(loss))
    counts = [loss_normalizer(loss, chunk, part) for chunk, part in zip(chunks, outputs, strict=True)]
    if wants_outputs(loss):
        _check_constant(counts, [loss_normalizer(loss, c, part) for c, part in zip(chunks, others, strict=True)])
    if objective.idle:
        counts = [0.0] * len(chunks)
    (total,) = objective.reduce.sum([torch.tensor(sum(counts), dtype=torch.float64, device=device)])
    if not total > 0:
        raise ValueError("no target counts: the loss ignores every target of the batch")
    weights = [count / float(total) for count in counts]
    if not known:
        pairs = [(part, chunk.targets) for part, chunk in zip(outputs, chunks, strict=True)]
        _compare(objective.evaluate_loss, pairs, weights, "mean", DECLARE)
    return weights


def check_apart(loss: Any, outputs: Any, targets: Any) -> None:
    """Refuse what ties the examples of an elementwise loss of torch's together, so that parts are another function.

    That is: outputs and targets that are broadcast over each other, and settings (a weight for each example, say) with
    rows of their own, which do not follow the data when they are cut.

    Raises:
        ValueError: there is such a thing.
    """
    first = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else outputs
    if not isinstance(first, Tensor) or not isinstance(targets, Tensor) or not is_elementwise(loss):
        return
    if first.dim() != targets.dim() or first.shape[:1] != targets.shape[:1]:
        raise ValueError(
            f"outputs of shape {list(first.shape)} and targets of shape {list(targets.shape)} are broadcast over each "
            "other, which ties the examples together, so that chunks or ranks do not add up to the whole batch; give "
            "both the same shape"
        )
    for name in ("weight", "pos_weight", "var"):
        value = setting(loss, name, None)
        if isinstance(value, Tensor) and value.dim() == first.dim() > 0 and value.shape[0] != 1:
            raise ValueError(
                f"the loss's {name} of shape {list(value.shape)} has rows of its own, which do not follow the data "
                "into chunks or to ranks; put them into the targets, and let a loss of your own read them there"
            )


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


def _outputs(objective: Any, elsewhere: bool = False) -> tuple[list[Any], list[Any]]:
    """What the loss gets of each chunk, at the present parameters, and with what depends on these changed.

    Args:
        objective: the objective.
        elsewhere: whether the second is asked for; it takes the memory of a pass with its graph.
    """
    parameters = objective.model.named_parameters()
    point = {name: p.detach().requires_grad_(elsewhere and p.requires_grad) for name, p in parameters}
    found: list[Any] = []
    others: list[Any] = []

    def keep(outputs: Any) -> Any:
        leaves, structure = tree_flatten(outputs)
        plain = [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]
        found.append(tree_unflatten(plain, structure))
        depends = [isinstance(x, Tensor) and x.requires_grad for x in leaves]
        changed = [_shake(x) if own else x for x, own in zip(plain, depends, strict=True)]
        others.append(tree_unflatten(changed, structure))
        return outputs

    for index, chunk in enumerate(objective.chunks):
        with torch.enable_grad(), forked(index, cuda_devices(objective.model)):
            objective.forward_pass(chunk, point, objective.buffers(), between=keep)
    return found, others


def _check_constant(counts: list[float], others: list[float]) -> None:
    """Refuse a declared count that changes with the parameters: the weights of a step are those of its beginning."""
    for count, other in zip(counts, others, strict=True):
        if other != count:
            raise ValueError(
                f"loss.normalizer gives {count:.6g} for the model's outputs and {other:.6g} for others: what weighs a "
                "chunk must not change with the parameters; count targets, or read the outputs' shapes alone"
            )


def check_sum(evaluate: Evaluate, outputs: Sequence[Any], chunks: Sequence[Chunk]) -> None:
    """Refuse a loss with reduction "sum" of which parts do not add up: the halves of a chunk, or chunks of one row.

    Args:
        evaluate: the loss.
        outputs: of the chunks.
        chunks: the data.

    Raises:
        ValueError: they do not.
    """
    index = max(range(len(chunks)), key=lambda i: chunks[i].rows)
    rows, pairs = chunks[index].rows, [(part, chunk.targets) for part, chunk in zip(outputs, chunks, strict=True)]
    if rows > 1:
        whole = Chunk(outputs[index], chunks[index].targets, rows)
        halves = [cut(whole, 0, rows // 2), cut(whole, rows // 2, rows)]
        pairs = [(half.inputs, half.targets) for half in halves]
    if len(pairs) > 1:
        _compare(evaluate, pairs, [1.0] * len(pairs), "sum", "set loss.reduction to what it is, a mean, and " + DECLARE)


def _compare(evaluate: Evaluate, pairs: list[Any], weights: list[float], kind: str, advice: str) -> None:
    """Refuse where the loss of the whole is not the weighed sum of the chunks' losses."""
    for change in (None, _shake, _shrink):
        parts = [(_changed(part, change, index), targets) for index, (part, targets) in enumerate(pairs)]
        try:
            whole, losses, eps = _losses(evaluate, parts)
        except Exception as error:  # of the user's loss, too
            if change is not None:  # outputs that it does not take
                continue
            raise ValueError(
                f"whether the loss takes a {kind} over the rows cannot be told: {str(error).splitlines()[0]}; {advice}"
            ) from error
        total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        if not math.isfinite(whole):  # the step itself will say so; or outside of the loss's domain
            continue
        allowed = ROUNDING * eps * max(abs(whole), *(abs(loss) for loss in losses if math.isfinite(loss)), 0.0)
        if change is None:  # losses near zero may be nothing but the rounding of the outputs
            allowed += 10 * eps * _largest(parts)
        if not abs(whole - total) <= allowed:
            where = " (at outputs changed at random)" if change else ""
            weighed = "weighed by their rows" if kind == "mean" else "added up"
            raise ValueError(
                f"the loss is no {kind} over the rows: of all {len(losses)} chunks at once it is {whole:.8g}, of the "
                f"chunks {weighed} {total:.8g}{where}; {advice}"
            )
        if change is not None:
            return


def _losses(evaluate: Evaluate, pairs: list[Any]) -> tuple[float, list[float], float]:
    """The loss of the whole, of each chunk, and the machine epsilon they have."""
    whole = evaluate(joined([part for part, _ in pairs]), joined([targets for _, targets in pairs])).detach()
    losses = [float(evaluate(part, targets).detach()) for part, targets in pairs]
    return float(whole), losses, torch.finfo(whole.dtype).eps


def _largest(pairs: list[Any]) -> float:
    leaves = [x for part, _ in pairs for x in tree_flatten(part)[0] if isinstance(x, Tensor) and x.is_floating_point()]
    return max((float(x.abs().max()) for x in leaves if x.numel()), default=0.0)


def _changed(outputs: Any, change: Callable[[Tensor, int], Tensor] | None, seed: int) -> Any:
    leaves, structure = tree_flatten(outputs)
    changed = [x.clone() if isinstance(x, Tensor) else x for x in leaves]  # a loss may work in place on its outputs
    if change is not None:
        real = [isinstance(x, Tensor) and x.is_floating_point() for x in leaves]
        changed = [change(x, seed) if is_real else x for x, is_real in zip(changed, real, strict=True)]
    return tree_unflatten(changed, structure)


def _shake(leaf: Tensor, seed: int = 0) -> Tensor:
    """Outputs changed at random: at special ones, all zero say, every chunk may have the same loss by chance."""
    return leaf + 0.1 * _noise(leaf, seed) * (1 + leaf.abs())


def _shrink(leaf: Tensor, seed: int) -> Tensor:
    """The same for outputs with a domain, such as probabilities, which stay in it."""
    return leaf * (1 - 0.1 * _noise(leaf, seed))


def _noise(leaf: Tensor, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(leaf.shape, generator=random, dtype=torch.float64).to(leaf.device, leaf.dtype)
