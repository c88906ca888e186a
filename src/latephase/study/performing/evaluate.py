"""Metrics of a model on all rows of every split, without any effect on the model or on random numbers."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...objective import (
    Chunk,
    Evaluate,
    WeightDecay,
    check_sum,
    cuda_devices,
    forked,
    is_torchs,
    joined,
    loss_normalizer,
    normalizer_is_known,
    setting,
)
from ...problems import Problem, Splits
from ...problems.problem import Batch, Data, is_batch, row_count
from ...problems.sampling import Stream, generator

ROWS_AT_ONCE = 2048


class Evaluator:
    """Evaluates states of a model on a copy of it, in eval mode.

    Args:
        problem: gives loss, L2 term and metrics.
        model: gives the structure; it is copied.
        splits: the data.
        only: the one split that is measured, nothing else being looked at. Default: all of them.
    """

    def __init__(
        self, problem: Problem, model: nn.Module, splits: Splits, only: Literal["train", "valid", "test"] | None = None
    ):
        self._only = only
        self._problem, self._splits = problem, splits
        self._model = copy.deepcopy(model).eval()
        self._decay = WeightDecay(self._model, problem.weight_decay)
        self._constants = {name: p.detach() for name, p in self._model.named_parameters()}
        self._devices = cuda_devices(self._model)

    def __call__(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """Loss (L2 term included) and metrics of a state dict on each split, and the L2 term alone.

        Of a model with two parameters they are there, too, as "point". A number that is not finite is None. What draws
        random numbers in eval mode, and training data that is generated for evaluation, draws the same ones every time,
        and torch's generators stay where they are.

        Args:
            state: a state dict of the model.
        """
        self._model.load_state_dict(state)
        problem, splits = self._problem, self._splits
        if self._only is not None:
            with forked(0, self._devices):
                return self._measure(self._only, getattr(splits, self._only))
        found: dict[str, Any] = {"l2_term": float(self._decay.value())}
        if sum(p.numel() for p in self._constants.values()) == 2:
            point = torch.cat([p.reshape(-1) for p in self._constants.values()]).tolist()
            found["point"] = [x if math.isfinite(x) else None for x in point]
        with forked(0, self._devices):
            if problem.train_evaluation is None:
                found |= self._measure("train", splits.train)
            else:
                random = generator(Stream.EVALUATION, 0, 0)
                found |= self._measure("train", problem.train_evaluation(problem, splits, random), prepared=True)
            return found | self._measure("valid", splits.valid) | self._measure("test", splits.test)

    def _measure(self, split: str, data: Data, prepared: bool = False) -> dict[str, float | None]:
        metrics = [metric for metric in self._problem.metrics if metric.is_of(split)]
        sums, weighed = [torch.zeros((), dtype=torch.float64)] * len(metrics), _Weighed(self._problem.loss)
        objective = None
        for batch in self._batches(data, prepared):
            objective = self._problem.objective(self._model, [batch])
            chunk = objective.chunks[0]
            objective.program.several = len(batch[1]) < row_count(data)
            with torch.enable_grad():  # constants record no graph, but a forward pass that differentiates needs it
                part, outputs = objective.forward_pass(chunk, self._constants, {})
            weighed.add(part, outputs, chunk)
            sums = [total + metric.sums(outputs, batch[1]) for total, metric in zip(sums, metrics, strict=True)]
        assert objective is not None
        found = {"loss": weighed.loss(objective.evaluate_loss) + float(self._decay.value())}
        found |= {metric.name: metric.value(total) for metric, total in zip(metrics, sums, strict=True)}
        return {f"{split}_{name}": value if math.isfinite(value) else None for name, value in found.items()}

    def _batches(self, data: Data, prepared: bool) -> Iterator[Batch]:
        """Parts of a split as the model takes them."""
        problem = self._problem
        if not is_batch(data):
            parts: list[Any] = list(data if prepared else problem.batch(data))
            yield from parts
            return
        for start in range(0, row_count(data), ROWS_AT_ONCE):
            chosen = slice(start, start + ROWS_AT_ONCE)
            part: Any = (data[0][chosen], data[1][chosen]) if prepared else problem.batch(data, chosen)
            yield part


class _Weighed:
    """The loss of a split from those of its parts, by the rule of the objective (`chunk_weights`).

    Of a loss that does not say what its mean divides by, the outputs of all parts are kept, and it gets them at once.
    """

    def __init__(self, loss: Any):
        self._loss = loss
        self._sums = setting(loss, "reduction", None) == "sum"
        self._known = is_torchs(loss) if self._sums else normalizer_is_known(loss)
        self._parts: list[tuple[float, float]] = []
        self._kept: list[tuple[Any, Chunk]] = []

    def add(self, part: Tensor, outputs: Any, chunk: Chunk) -> None:
        """The loss of one more part, and what it was made of; both may have a graph to points of a domain."""
        if self._known:
            count = 1.0 if self._sums else loss_normalizer(self._loss, chunk, outputs)
            self._parts.append((count, float(part.detach())))
        else:
            self._parts.append((1.0, float(part.detach())))
            self._kept.append((outputs, replace(chunk, inputs=None)))

    def loss(self, evaluate: Evaluate) -> float:
        """The loss of all parts.

        Raises:
            ValueError: what calls itself a sum is none, or the parts cannot be joined.
        """
        if len(self._parts) == 1:
            return self._parts[0][1]
        if not self._known:
            outputs, chunks = zip(*self._kept, strict=True)
            if self._sums:
                check_sum(evaluate, outputs, chunks)
            else:
                return float(evaluate(joined(outputs), joined([chunk.targets for chunk in chunks])).detach())
        total = sum(count for count, _ in self._parts)
        value = sum(count * part for count, part in self._parts if count)
        return value if self._sums else value / total if total else math.nan
