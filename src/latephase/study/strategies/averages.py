"""Averages of the weights, evaluated in place of the last ones: the strongest cheap rivals of a decaying rate.

Each gives what it would hold if the run stopped now.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ...objective import Objective
from ...optim import StateAverage, layers_with_statistics, renew_statistics, state_dict_with
from ...problems.sampling import Stream, batches, generator
from .context import StrategyContext

BATCHES = 50
"""Mini-batches whose statistics batch norm gets; its running statistics belong to no average of weights."""
HORIZON = 0.05
"""Of an exponential average, as a share of the budget: as long as the window of `WINDOW` states."""
WINDOW = 5
"""States that the average of the latest has."""
MARKS = 100
"""Points of the budget, equally spaced, at which that takes a state."""


class Average:
    """What of the weights is evaluated. A kind says in `update` how a step's weights are counted in.

    Args:
        context: model, data and seed.
        module: holds the average; a copy of the model.
    """

    def __init__(self, context: StrategyContext, module: nn.Module):
        self._context, self._module = context, module

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
        model = self._module
        if not layers_with_statistics(model):
            return state
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(state)
        renew_statistics(model, self._objectives(model), self._context.seed)
        refreshed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(own)
        return refreshed

    def _objectives(self, model: nn.Module) -> Iterator[Objective]:
        context = self._context
        size = context.training.batch_size or context.rows
        random = generator(Stream.EVALUATION, context.seed, 0)
        for rows in batches(context.rows, size, context.seed, 0)[:BATCHES]:
            context.work.values += size
            yield context.problem.objective(model, context.problem.batch(context.splits.train, rows, random))


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


class Shared(Average):
    """An average that the hand-over has, too; buffers are those of the last step.

    Args:
        context: model, data and seed.
        average: of the model's states.
    """

    def __init__(self, context: StrategyContext, average: StateAverage):
        super().__init__(context, copy.deepcopy(context.model))
        self._average = average

    def update(self, share: float) -> None:
        """Count the model's present weights in."""
        self._average.add(self._context.model, share)

    def state(self) -> dict[str, Tensor]:
        """The model's state dict with averaged weights."""
        return state_dict_with(self._context.model, self._average.mean)


class ScheduleFree(Average):
    """What a schedule-free optimizer evaluates, which is an average of its own.

    Its steps go on bit for bit as if nobody had looked: the weights that they need are put back.

    Args:
        context: model, data and seed.
        optimizer: has `eval` and `train`, which exchange the weights of evaluation and steps.
    """

    def __init__(self, context: StrategyContext, optimizer: Any):
        super().__init__(context, copy.deepcopy(context.model))
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
