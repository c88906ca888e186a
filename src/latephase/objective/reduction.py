"""Whether a loss takes a mean or a sum over its examples, and what the mean divides by."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .data import Chunk

_ELEMENTS = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss, nn.GaussianNLLLoss, nn.KLDivLoss, nn.SoftMarginLoss,
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss, F.gaussian_nll_loss, F.kl_div, F.soft_margin_loss,
)  # fmt: skip


_ROWS = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss)


_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, F.cross_entropy, F.nll_loss)


def setting(loss: Any, name: str, default: Any) -> Any:
    """A setting of a loss module, of a functional loss, or of a functools.partial of one."""
    if isinstance(loss, functools.partial):
        own = vars(loss) | loss.keywords
        return own[name] if name in own else setting(loss.func, name, default)
    return getattr(loss, name, default)


def _is_one_of(loss: Any, kinds: Sequence[Any]) -> bool:
    if isinstance(loss, functools.partial):
        changed = loss.args or {"size_average", "reduce"} & loss.keywords.keys()
        return not changed and _is_one_of(loss.func, kinds)
    return any(_is_of(loss, kind) if isinstance(kind, type) else loss is kind for kind in kinds)


def _is_of(loss: Any, kind: type) -> bool:
    """Whether this is a loss of that class, computing what the class computes."""
    if not isinstance(loss, kind) or "forward" in vars(loss) or loss._forward_hooks or loss._forward_pre_hooks:
        return False
    return type(loss).forward is kind.forward  # pyright: ignore[reportAttributeAccessIssue]


def loss_reduction(loss: Any) -> str:
    """How the loss reduces its examples, "mean" or "sum"; asked only where there are several chunks or ranks.

    Raises:
        ValueError: the loss does not say, or says something else.
    """
    functional = any(_is_one_of(loss, (kind,)) for kind in _ELEMENTS + _CLASSES if not isinstance(kind, type))
    counts = functional or _declared(loss) is not None  # who says what a mean divides by has one
    reduction = setting(loss, "reduction", "mean" if counts else None)
    if reduction in ("mean", "sum"):
        return reduction
    if reduction == "batchmean":
        return "mean"
    raise ValueError(
        f"several chunks or ranks must be weighed, but the loss does not say whether it takes a mean or a sum over its "
        f"examples (reduction is {reduction!r}); set it, for example: loss.reduction = 'mean', and where the mean is "
        "not over the rows, what it divides by: loss.normalizer = lambda outputs, targets: (targets != -100).sum()"
    )


def normalizer_is_known(loss: Any) -> bool:
    """Whether what the loss's mean divides by is known of torch's own losses, or declared by the loss."""
    return _declared(loss) is not None or is_torchs(loss)


def is_elementwise(loss: Any) -> bool:
    """Whether this is one of torch's losses that compare outputs and targets element by element."""
    return _is_one_of(loss, _ELEMENTS)


def is_torchs(loss: Any) -> bool:
    """Whether this is one of torch's losses, whose mean and sum are known."""
    return _is_one_of(loss, (*_ELEMENTS, *_CLASSES, *_ROWS))


def wants_outputs(loss: Any) -> bool:
    """Whether the loss declares what its mean divides by as a function of outputs and targets."""
    declared = _declared(loss)
    if declared is None or declared is len:
        return False
    try:
        parameters = inspect.signature(declared).parameters.values()
    except (TypeError, ValueError):  # of a builtin, such as torch.numel
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in kinds and p.default is p.empty]
    return len(required) > 1


def _declared(loss: Any) -> Callable[..., Any] | None:
    declared = setting(loss, "normalizer", None)
    if declared is not None and not callable(declared):
        raise TypeError(f"loss.normalizer must be a function of (outputs, targets) or (targets), got {declared!r}")
    return declared


def loss_normalizer(loss: Any, chunk: Chunk, outputs: Any = None) -> float:
    """What a loss with reduction "mean" divides by on this chunk: what it declares, or the sum of `row_normalizers`.

    Args:
        loss: the loss.
        chunk: the data.
        outputs: what the loss gets of the chunk; needed where `wants_outputs`.

    Raises:
        ValueError: the loss declares something else than a finite number >= 0.
    """
    declared = _declared(loss)
    if declared is None:
        return float(row_normalizers(loss, chunk).sum())
    count = declared(outputs, chunk.targets) if wants_outputs(loss) else declared(chunk.targets)
    try:
        number = float(count)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"loss.normalizer must return one finite number >= 0, got {count!r}")
    return number


def row_normalizers(loss: Any, chunk: Chunk) -> Tensor:
    """What each example adds to the number that a loss with reduction "mean" divides by [rows], float64.

    Cross-entropy: the summed class weights of the targets that count. Squared error, binary cross-entropy and their
    kin: the number of elements. Any other loss: one.
    """
    targets = chunk.targets
    weight = setting(loss, "weight", None)
    if _is_one_of(loss, _CLASSES) and weight is not None and not targets.is_floating_point():
        counted = targets != setting(loss, "ignore_index", -100)
        weights = weight.to(targets.device)[torch.where(counted, targets, 0)]
        return torch.where(counted, weights, 0).double().reshape(chunk.rows, -1).sum(1)
    return row_terms(loss, chunk)


def row_terms(loss: Any, chunk: Chunk) -> Tensor:
    """Over how many terms of equal standing a loss with reduction "mean" takes it in each example [rows], float64.

    Cross-entropy: targets that count; squared error and its kin: elements; any other loss: one.
    """
    targets = chunk.targets
    each = 1.0
    if _is_one_of(loss, _CLASSES):
        if not targets.is_floating_point():
            counted = targets != setting(loss, "ignore_index", -100)
            return counted.reshape(chunk.rows, -1).sum(1).double()
        # Class probabilities: torch divides by the number of targets.
        each = targets.numel() / targets.shape[min(1, targets.dim() - 1)] / chunk.rows
    elif _is_one_of(loss, _ELEMENTS) and setting(loss, "reduction", "mean") != "batchmean":
        each = targets.numel() / chunk.rows
    device = next((leaf.device for leaf in tree_leaves(targets) if isinstance(leaf, Tensor)), None)
    return torch.full((chunk.rows,), each, dtype=torch.float64, device=device)
