"""The data of an objective as chunks: reading what the user gives, cutting and drawing rows, weighing chunks."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map

ROWS_HINT = "dimension 0 of every input and of the targets counts the examples"


@dataclass(frozen=True)
class Chunk:
    """Part of the data: inputs (a tensor or a tree of tensors) and targets, example by example along dimension 0.

    Attributes:
        inputs: a tensor or a tree of tensors.
        targets: a tensor.
        counted: the number of examples; or why they cannot be counted, which is no error as long as nobody asks.
    """

    inputs: Any
    targets: Any
    counted: int | str

    @property
    def rows(self) -> int:
        """The number of examples, asked for where a batch is cut, split, drawn from or weighed.

        Raises:
            ValueError: they cannot be counted.
        """
        if isinstance(self.counted, str):
            raise ValueError(f"{self.counted}, which only a batch that stays whole may have")
        return self.counted

    @property
    def extent(self) -> int:
        """The number of examples, or of targets where they cannot be counted: for estimates of cost only."""
        return len(self.targets.reshape(-1)) if isinstance(self.counted, str) else self.counted


def read_chunks(data: Any, microbatch_size: int | None) -> list[Chunk]:
    """One batch, or a sequence of batches, as chunks.

    Args:
        data: a pair (inputs, targets) as tuple or list, or a sequence of such pairs.
        microbatch_size: at most so many examples per chunk; None leaves the batches whole.

    Raises:
        TypeError: the data is neither.
        ValueError: an empty batch, inputs and targets of different length, or a microbatch_size below 1.
    """
    if microbatch_size is not None and not (isinstance(microbatch_size, int) and microbatch_size >= 1):
        raise ValueError(f"microbatch_size must be an integer >= 1 or 'auto', got {microbatch_size!r}")
    if _is_pair(data):
        batches = [data]
    elif isinstance(data, (tuple, list)) and data and not isinstance(data[0], (tuple, list)):
        batches = [data]  # meant as one batch; what is wrong with it is said below
    elif isinstance(data, Sequence) and not isinstance(data, str):
        batches = list(data)
        if not batches:
            raise ValueError("the data is an empty sequence of batches")
    else:
        raise TypeError(
            f"data must be a pair (inputs, targets) or a sequence of such pairs, got {type(data).__name__}; "
            "make a list of a DataLoader's batches first: Objective(model, loss, list(loader))"
        )
    chunks = [_read_batch(batch, index, len(batches)) for index, batch in enumerate(batches)]
    if len(chunks) > 1:
        for chunk in chunks:
            _ = chunk.rows  # several batches are weighed
    if microbatch_size is None:
        return chunks
    return [
        cut(chunk, start, min(start + microbatch_size, chunk.rows))
        for chunk in chunks
        for start in range(0, chunk.rows, microbatch_size)
    ]


def _is_pair(data: Any) -> bool:
    return isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[1], Tensor)


def _read_batch(batch: Any, index: int, count: int) -> Chunk:
    where = "the batch" if count == 1 else f"chunk {index}"
    if not _is_pair(batch):
        what = type(batch).__name__
        if isinstance(batch, (tuple, list)):
            what = f"{what} of {', '.join(type(part).__name__ for part in batch)}"
        raise TypeError(
            f"{where} must be a pair (inputs, targets) with a tensor of targets, got a {what}; torch.as_tensor makes "
            "tensors of arrays, and several inputs are one tuple: ((x1, x2), y)"
        )
    inputs, targets = batch
    if isinstance(inputs, list):
        inputs = tuple(inputs)
    elif isinstance(inputs, Mapping):  # of any kind, such as a tokenizer's
        inputs = dict(inputs)
    lengths = [leaf.shape[0] for leaf in _batched(inputs)]
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(inputs)):
        raise TypeError(f"{where} has no tensor among its inputs; torch.as_tensor makes tensors of arrays")
    if targets.dim() == 0 or not lengths:
        return Chunk(inputs, targets, f"{where} has no examples to count: {ROWS_HINT}")
    rows = targets.shape[0]
    if rows == 0 or 0 in lengths:
        raise ValueError(f"{where} is empty: it has no rows")
    for length in lengths:
        if length != rows:
            message = f"{where} has {length} rows of inputs but {rows} of targets; {ROWS_HINT}"
            return Chunk(inputs, targets, message)
    return Chunk(inputs, targets, rows)


def _batched(tree: Any) -> list[Tensor]:
    """The tensors of a tree that have a batch dimension."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.dim() > 0]


def _map_batched(function: Any, tree: Any) -> Any:
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf, tree)


def cut(chunk: Chunk, start: int, stop: int) -> Chunk:
    """Rows start .. stop - 1 of a chunk, as views."""
    inputs, targets = _map_batched(lambda leaf: leaf[start:stop], (chunk.inputs, chunk.targets))
    return Chunk(inputs, targets, stop - start)


def take(chunks: Sequence[Chunk], rows: Tensor) -> list[Chunk]:
    """The given rows, counted through all chunks, chunk by chunk; a chunk none of whose rows is taken is left out."""
    taken, offset = [], 0
    for chunk in chunks:
        own = rows[(rows >= offset) & (rows < offset + chunk.rows)] - offset
        offset += chunk.rows
        if own.numel():
            pair = (chunk.inputs, chunk.targets)
            inputs, targets = _map_batched(lambda leaf, own=own: leaf[own.to(leaf.device)], pair)
            taken.append(Chunk(inputs, targets, own.numel()))
    return taken


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """The tree with its floating-point tensors in `dtype`."""

    def convert(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(convert, tree)


def nonfinite_entries(chunks: Sequence[Chunk]) -> str | None:
    """Where the data is not a number or plus infinity, in words; None where it is neither.

    Minus infinity is let pass: attention masks hold it on purpose.
    """
    for index, chunk in enumerate(chunks):
        for path, leaf in tree_flatten_with_path({"inputs": chunk.inputs, "targets": chunk.targets})[0]:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                continue
            bad = leaf.isnan() | leaf.isposinf()
            if bool(bad.any()):
                where = bad.nonzero()
                name = "".join(str(key) for key in path)[2:].replace("']", "", 1)
                row = f", the first in row {int(where[0, 0])}" if leaf.dim() else ""
                return f"{name} of chunk {index} holds {len(where)} values that are not finite{row}"
    return None


_ELEMENTS = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss, nn.GaussianNLLLoss, nn.KLDivLoss, nn.SoftMarginLoss,
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss, F.gaussian_nll_loss, F.kl_div, F.soft_margin_loss,
)  # fmt: skip
_ROWS = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss)
_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, F.cross_entropy, F.nll_loss)


def _setting(loss: Any, name: str, default: Any) -> Any:
    """A setting of a loss module, of a functional loss, or of a functools.partial of one."""
    if isinstance(loss, functools.partial):
        own = vars(loss) | loss.keywords
        return own[name] if name in own else _setting(loss.func, name, default)
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
    reduction = _setting(loss, "reduction", "mean" if counts else None)
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
    declared = _setting(loss, "normalizer", None)
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
    weight = _setting(loss, "weight", None)
    if _is_one_of(loss, _CLASSES) and weight is not None and not targets.is_floating_point():
        counted = targets != _setting(loss, "ignore_index", -100)
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
            counted = targets != _setting(loss, "ignore_index", -100)
            return counted.reshape(chunk.rows, -1).sum(1).double()
        # Class probabilities: torch divides by the number of targets.
        each = targets.numel() / targets.shape[min(1, targets.dim() - 1)] / chunk.rows
    elif _is_one_of(loss, _ELEMENTS) and _setting(loss, "reduction", "mean") != "batchmean":
        each = targets.numel() / chunk.rows
    return torch.full((chunk.rows,), each, dtype=torch.float64, device=targets.device)
