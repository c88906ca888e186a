"""The average of the weights since the checkpoint, the strongest cheap competitor of a decaying rate."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, update_bn

from ...objective import cuda_devices, forked
from ...problems.sampling import Stream, batches, generator
from .context import StrategyContext

BATCHES = 50
"""Mini-batches whose statistics batch norm gets; its running statistics belong to no average of weights."""


class Average:
    """The running mean of the weights (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima"), step by step.

    Args:
        context: model, data and seed.
    """

    def __init__(self, context: StrategyContext):
        self._context = context
        self._average = AveragedModel(context.model)
        self._has_statistics = any(isinstance(module, _BatchNorm) for module in context.model.modules())

    def update(self) -> None:
        """Count the model's present weights in."""
        self._average.update_parameters(self._context.model)

    def state(self) -> dict[str, Tensor]:
        """The model's state dict with averaged weights."""
        return self._average.module.state_dict()

    def with_statistics(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state with batch norm's statistics measured on training batches; as it is without batch norm."""
        if not self._has_statistics:
            return state
        model: nn.Module = self._average.module
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
