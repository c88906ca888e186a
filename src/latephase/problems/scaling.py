"""Standardising columns with the statistics of the training split."""

import torch
from torch import Tensor

from .problem import Splits

Pair = tuple[Tensor, Tensor]


def standardize(train: Pair, valid: Pair, test: Pair, targets: bool = False) -> Splits:
    """Scale every column of the inputs, and of the targets if asked for, to mean 0 and standard deviation 1 on `train`.

    Statistics are computed in float64; a column that is constant is only shifted. Results are float32.

    Args:
        train: inputs [N, columns] and targets of the training split, from which the statistics come.
        valid: of the validation split.
        test: of the test split.
        targets: whether targets [N, outputs] are scaled too. Default False: class numbers stay.
    """
    parts = [train, valid, test]
    columns = [_standardized([part[0] for part in parts])]
    columns.append(_standardized([part[1] for part in parts]) if targets else [part[1] for part in parts])
    return Splits(*zip(*columns, strict=True))


def _standardized(parts: list[Tensor]) -> list[Tensor]:
    deviation, mean = torch.std_mean(parts[0].double(), dim=0, correction=0)
    deviation = torch.where(deviation == 0, 1.0, deviation)
    return [((part - mean) / deviation).float() for part in parts]
