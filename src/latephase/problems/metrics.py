"""What is measured of a model beside its loss, as sums over rows, so that large splits are measured in parts."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """A number computed from sums over the rows of a split.

    Attributes:
        name: as in tables and rows of results.
        sums: (outputs, targets) of some rows -> [k], what is added up over all rows, in float64.
        value: [k] sums over all rows -> the number.
        higher_is_better: the direction of improvement.
        on_train: whether it means something on the training split.
        on_valid: whether it means something on the validation split.
    """

    name: str
    sums: Callable[[Any, Tensor], Tensor]
    value: Callable[[Tensor], float]
    higher_is_better: bool
    on_train: bool = True
    on_valid: bool = True

    def is_of(self, split: str) -> bool:
        """Whether it means something on a split: "train", "valid" or "test"."""
        return {"train": self.on_train, "valid": self.on_valid}.get(split, True)


def ratio(sums: Tensor) -> float:
    """The first sum over the second."""
    return float(sums[0] / sums[1])


def _root_ratio(sums: Tensor) -> float:
    return float((sums[0] / sums[1]).sqrt())


def _over(total: Tensor, count: int) -> Tensor:
    return torch.stack([total.double(), torch.tensor(count, dtype=torch.float64, device=total.device)])


def counted(hits: Tensor) -> Tensor:
    """The sums of a share: how many of the entries are true, and how many there are."""
    return _over(hits.sum(), hits.numel())


def _correct(outputs: Tensor, targets: Tensor) -> Tensor:
    return counted(outputs.argmax(dim=1) == targets)


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    squares = (outputs - targets).double().square()
    return _over(squares.sum(), squares.numel())


def _squared_and_reference(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([(outputs - targets).double().square().sum(), targets.double().square().sum()])


accuracy = Metric("accuracy", _correct, ratio, higher_is_better=True)
"""Share of the targets, class numbers, that the largest of the logits names; logits [N, classes, ...]."""


def _identity(outputs: Tensor) -> Tensor:
    return outputs


def _squared_per_row(outputs: Tensor, targets: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    squares = (activation(outputs) - targets).double().square()
    return _over(squares.sum(), len(squares))


def squared_error_per_row(activation: Callable[[Tensor], Tensor] = _identity) -> Metric:
    """The squared error summed over each row, its mean over the rows: the measure of the literature on autoencoders.

    Args:
        activation: applied to the outputs first, such as the logistic function where they are logits. Default: none.
    """
    sums = functools.partial(_squared_per_row, activation=activation)
    return Metric("squared_error", sums, ratio, higher_is_better=False)


rmse = Metric("rmse", _squared, _root_ratio, higher_is_better=False)
"""Root of the mean squared error over all elements."""

relative_l2_error = Metric("relative_l2_error", _squared_and_reference, _root_ratio, False, on_train=False)
"""|outputs - targets| / |targets| in the Euclidean norm over all elements, the usual error of approximate solutions of
differential equations."""

solution_error = replace(relative_l2_error, on_valid=False)
"""The same where the validation split holds residuals at points of its own, which have no such error."""
