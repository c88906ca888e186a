"""Averages of the states that steps lead through, looked at in place of the last one."""

import copy
import math
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .states import State, tensors

LATENESS = 3
"""Of `TailAverage`. With 3 half of the weight lies on the newest sixth of the states."""


class StateAverage:
    """An average of a model's states.

    Attributes:
        count: of the states in it.
        mean: tensors by name; what it does not hold is as after the last step.
    """

    _saved: ClassVar[tuple[str, ...]] = ("count", "mean")
    """What a state dict has of it."""

    def __init__(self):
        self.count = 0
        self.mean: State = {}

    def add(self, model: nn.Module, share: float) -> None:
        """Count the model's present state in.

        Args:
            model: which has it.
            share: of the budget that was spent before the step that led to it.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """As plain values and tensors."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self._saved}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        for name in self._saved:
            setattr(self, name, copy.deepcopy(saved[name]))


class TailAverage(StateAverage):
    """The average of all states, the newer ones counting more: the state of step k with weight about k^3.

    Polynomial-decay averaging (Shamir and Zhang 2013, "Stochastic Gradient Descent for Non-smooth Optimization",
    Section 3.2, with eta = `LATENESS`): x_k <- (1 - (eta + 1) / (k + eta)) x_(k-1) + (eta + 1) / (k + eta) theta_k. It
    needs one state of memory and, unlike an exponential average, no horizon: when it is asked for, a good part of the
    newest states is in it, however many there were.
    """

    def add(self, model: nn.Module, share: float) -> None:
        """Count the model's present state in, buffers too; of integers, such as counters, the newest is kept."""
        self.count += 1
        weight = min(1.0, (LATENESS + 1) / (self.count + LATENESS))
        for name, tensor in tensors(model).items():
            if name not in self.mean or not tensor.dtype.is_floating_point:
                self.mean[name] = tensor.detach().clone()
            else:
                self.mean[name].lerp_(tensor, weight)


class ExponentialAverage(StateAverage):
    """The exponential average of the parameters: factors exp(-(t - t_i) / horizon), which are made to add up to 1.

    t_i is the share of the budget at which a step began, so that the horizon is a share of the budget's steps where
    these cost the same, whatever the unit of the budget.

    Args:
        horizon: share of the budget.
    """

    _saved = ("count", "mean", "_share", "_total")

    def __init__(self, horizon: float):
        super().__init__()
        self._horizon, self._share, self._total = horizon, 0.0, 0.0

    def add(self, model: nn.Module, share: float) -> None:
        """Count the model's present parameters in."""
        self.count += 1
        self._total = 1 + self._total * math.exp(-(share - self._share) / self._horizon)
        self._share = share
        for name, parameter in model.named_parameters():
            if name not in self.mean:
                self.mean[name] = parameter.detach().clone()
            else:
                self.mean[name].lerp_(parameter.detach(), 1 / self._total)


class WindowAverage(StateAverage):
    """The mean of the parameters of the latest states, of which there is one for each of equal parts of the budget.

    LAWA (Kaddour 2022, "Stop Wasting My Time!", arXiv:2209.14981), with states taken by shares of the budget as in
    Ajroldi et al. (2025, "When, Where and Why to Average Weights?", arXiv:2502.06761).

    Args:
        window: how many states; all there are while there are fewer.
        marks: into how many parts the budget is divided.
    """

    _saved = ("count", "mean", "_mark")

    def __init__(self, window: int, marks: int):
        super().__init__()
        self._states: deque[list[Tensor]] = deque(maxlen=window)
        self._marks, self._mark = marks, -1

    def add(self, model: nn.Module, share: float) -> None:
        """Take the model's present parameters where the next part of the budget has begun."""
        mark = math.floor(share * self._marks + 1e-9)  # 0.29 * 100 is below 29
        if mark <= self._mark:
            return
        self.count, self._mark = self.count + 1, mark
        names, parameters = zip(*model.named_parameters(), strict=True)
        self._states.append([parameter.detach().clone() for parameter in parameters])
        means = [torch.stack(values).mean(dim=0) for values in zip(*self._states, strict=True)]
        self.mean = dict(zip(names, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """As plain values and tensors."""
        return super().state_dict() | {"_states": [copy.deepcopy(each) for each in self._states]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        super().load_state_dict(saved)
        self._states = deque(saved["_states"], maxlen=self._states.maxlen)
