"""Averages of the weights, evaluated in place of the last ones: the strongest cheap rivals of a decaying rate.

Each gives what it would hold if the run stopped now.
"""

import copy
import math
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, update_bn

from ...objective import cuda_devices, forked
from ...problems.sampling import Stream, batches, generator
from .context import StrategyContext

BATCHES = 50
"""Mini-batches whose statistics batch norm gets; its running statistics belong to no average of weights."""
HORIZON = 0.05
"""Of an exponential average, as a share of the budget: as long as the window of `WINDOW` states."""
WINDOW = 5
"""States that `Latest` averages."""
MARKS = 100
"""Points of the budget, equally spaced, at which `Latest` takes a state."""


class Average:
    """What of the weights is evaluated. A kind says in `update` how a step's weights are counted in.

    Args:
        context: model, data and seed.
        module: holds the average; a copy of the model.
    """

    def __init__(self, context: StrategyContext, module: nn.Module):
        self._context, self._module = context, module
        self._has_statistics = any(isinstance(part, _BatchNorm) for part in module.modules())

    def update(self, share: float) -> None:
        """Count the model's present weights in.

        Args:
            share: of the budget that was spent before the step that led to them.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """The model's state dict with averaged weights."""
        return self._module.state_dict()

    def with_statistics(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state with batch norm's statistics measured on training batches; as it is without batch norm."""
        if not self._has_statistics:
            return state
        model = self._module
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(state)
        # In a fork: dropout draws in these forward passes, and must not move what the steps draw.
        with torch.no_grad(), forked(self._context.seed, cuda_devices(model)):
            update_bn(self._inputs(), model)
        refreshed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(own)
        return refreshed

    def _inputs(self):
        context = self._context
        size = context.training.batch_size or context.rows
        random = generator(Stream.EVALUATION, context.seed, 0)
        for rows in batches(context.rows, size, context.seed, 0)[:BATCHES]:
            context.work.values += size
            yield context.problem.batch(context.splits.train, rows, random)


class Mean(Average):
    """The running mean of the weights (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima"), step by step.

    Args:
        context: model, data and seed.
    """

    def __init__(self, context: StrategyContext):
        self._average = AveragedModel(context.model)
        super().__init__(context, self._average.module)

    def update(self, share: float) -> None:
        """Count the model's present weights in."""
        self._average.update_parameters(self._context.model)


class _Own(Average):
    """An average in a copy of the model, whose buffers are those of the last step."""

    def __init__(self, context: StrategyContext):
        super().__init__(context, copy.deepcopy(context.model))

    @property
    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The average of each parameter, and the parameter."""
        pairs = zip(self._module.parameters(), self._context.model.parameters(), strict=True)
        return [(average.detach(), parameter.detach()) for average, parameter in pairs]

    def _take_buffers(self) -> None:
        for own, buffer in zip(self._module.buffers(), self._context.model.buffers(), strict=True):
            own.copy_(buffer)


class Exponential(_Own):
    """The exponential average: weights w_i with the factors exp(-(t - t_i) / horizon), which are made to add up to 1.

    t_i is the share of the budget at which a step began, so that the horizon is a share of the budget's steps where
    these cost the same, whatever the unit of the budget.

    Args:
        context: model, data and seed.
        horizon: share of the budget.
    """

    def __init__(self, context: StrategyContext, horizon: float):
        super().__init__(context)
        self._horizon, self._share, self._total = horizon, 0.0, 0.0

    def update(self, share: float) -> None:
        """Count the model's present weights in."""
        self._total = 1 + self._total * math.exp(-(share - self._share) / self._horizon)
        self._share = share
        for average, parameter in self._pairs:
            average.lerp_(parameter, 1 / self._total)
        self._take_buffers()


class Latest(_Own):
    """The mean of the latest states, one of which is taken at each hundredth of the budget.

    LAWA (Kaddour 2022, "Stop Wasting My Time!", arXiv:2209.14981), with states taken by shares of the budget as in
    Ajroldi et al. (2025, "When, Where and Why to Average Weights?", arXiv:2502.06761).

    Args:
        context: model, data and seed.
        window: how many states; all there are while there are fewer.
    """

    def __init__(self, context: StrategyContext, window: int):
        super().__init__(context)
        self._states: deque[list[Tensor]] = deque(maxlen=window)
        self._mark = -1

    def update(self, share: float) -> None:
        """Take the model's present weights where the next hundredth has been reached."""
        self._take_buffers()
        mark = math.floor(share * MARKS + 1e-9)  # 0.29 * 100 is below 29
        if mark <= self._mark:
            return
        self._mark = mark
        self._states.append([parameter.clone() for _, parameter in self._pairs])
        for (average, _), values in zip(self._pairs, zip(*self._states, strict=True), strict=True):
            average.copy_(torch.stack(values).mean(dim=0))


class ScheduleFree(_Own):
    """What a schedule-free optimizer evaluates, which is an average of its own.

    Its steps go on bit for bit as if nobody had looked: the weights that they need are put back.

    Args:
        context: model, data and seed.
        optimizer: has `eval` and `train`, which exchange the weights of evaluation and steps.
    """

    def __init__(self, context: StrategyContext, optimizer: Any):
        super().__init__(context)
        self._optimizer = optimizer

    def update(self, share: float) -> None:
        """Nothing: the optimizer has counted them in."""

    def state(self) -> dict[str, Tensor]:
        """The model's state dict with the weights of evaluation."""
        model = self._context.model
        own = [parameter.detach().clone() for parameter in model.parameters()]
        self._optimizer.eval()
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), own, strict=True):
                parameter.copy_(value)
        return state
