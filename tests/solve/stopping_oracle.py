"""Martens' stopping rule as the paper has it, one number after the other, and as a run applies it."""

import math
from collections.abc import Sequence

import torch

from latephase.solve.stopping import ModelHistory


def by_the_paper(values: Sequence[float], tolerance: float = 5e-4) -> bool:
    """Whether a run with the values m_0, ..., m_i stops (Martens 2010, Section 4.4)."""
    i = len(values) - 1
    k = max(10, math.ceil(0.1 * i))
    if i <= k or not values[i - k] < 0:
        return False
    return values[i] == 0 or (values[i] - values[i - k]) / values[i] < k * tolerance


def progress_is_small(values: Sequence[float], tolerance: float = 5e-4) -> bool:
    """What a run says that has recorded the values m_0, ..., m_i."""
    history = ModelHistory(len(values), [tolerance], torch.device("cpu"))
    for value in values:
        history.record(torch.tensor([value], dtype=torch.float64))
    return bool(history.progress_is_small())
