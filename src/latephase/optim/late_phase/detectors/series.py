"""What a detector keeps of a run: numbers on their device until they are looked at, and a thinned history."""

import math
from typing import Any

import torch
from torch import Tensor

HISTORY = 256
"""Pairs of step and statistic that are kept at most: enough for a figure."""


class Series:
    """Numbers of the newest steps, on their device.

    Args:
        share: of all numbers since the beginning, which is kept when they are looked at; the newest.
    """

    def __init__(self, share: float):
        self.share = share
        self.count = 0
        self._kept: Tensor | None = None
        self._pending: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        """Append a number []."""
        self._pending.append(value)
        self.count += 1

    def newest(self) -> Tensor:
        """The newest share [n] of the numbers, rounded up; forgets the rest."""
        self._gather()
        if self._kept is None:
            return torch.zeros(0, dtype=torch.float64)
        self._kept = self._kept[-max(1, math.ceil(self.share * self.count)) :].clone()
        return self._kept

    def _gather(self) -> None:
        if self._pending:
            first = self._pending[0].device if self._kept is None else self._kept.device
            fresh = torch.stack([value.to(first) for value in self._pending])
            self._kept = fresh if self._kept is None else torch.cat([self._kept, fresh])
            self._pending = []

    def saved(self) -> dict[str, Any]:
        """What goes into a state dict."""
        self._gather()
        return {"count": self.count, "numbers": None if self._kept is None else self._kept.clone()}

    def load(self, saved: dict[str, Any]) -> None:
        """Take over what `saved` returned."""
        numbers = saved["numbers"]
        self.count, self._kept, self._pending = saved["count"], None if numbers is None else numbers.clone(), []


class Thinned:
    """Pairs of step and statistic from the whole run: when there are too many, every second one is dropped."""

    def __init__(self):
        self.pairs: list[tuple[int, float]] = []
        self.every, self.seen = 1, 0

    def add(self, step: int, value: float) -> None:
        """Keep a pair, or pass over it."""
        if self.seen % self.every == 0:
            self.pairs.append((step, value))
        self.seen += 1
        if len(self.pairs) > HISTORY:
            del self.pairs[1::2]
            self.every *= 2

    def saved(self) -> dict[str, Any]:
        """What goes into a state dict."""
        return {"pairs": [list(pair) for pair in self.pairs], "every": self.every, "seen": self.seen}

    def load(self, saved: dict[str, Any]) -> None:
        """Take over what `saved` returned."""
        self.pairs = [(int(step), float(value)) for step, value in saved["pairs"]]
        self.every, self.seen = saved["every"], saved["seen"]
