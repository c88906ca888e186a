"""First-order optimizers under a schedule, and the average of weights, the strongest cheap rival of a decaying rate."""

import copy
import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, update_bn

from ...objective import cuda_devices, forked
from ...problems.problem import start_optimizer
from ...problems.sampling import Stream, batches, generator
from ..outline import About
from .base import Strategy
from .context import StrategyContext
from .table import StrategyTable, checked

BATCHES = 50
"""Mini-batches whose statistics batch norm gets; its running statistics belong to no average of weights."""


class FirstOrder(StrategyTable):
    """Go on with a first-order optimizer under a learning-rate schedule (Tatzel et al. 2022, Section 3.2).

    Schedules: "constant"; "tenth", a tenth of the rate; "cosine", to zero over the budget; "plateau", torch's
    ReduceLROnPlateau with a patience such that three reductions fit; "averaging", the constant rate with the average of
    the weights since the checkpoint evaluated (`torch.optim.swa_utils`), batch norm's statistics renewed on the clock.
    """

    about: ClassVar = About("first order", counts=("gradients", "values"))
    kind: Literal["first_order"]
    schedule: Literal["constant", "tenth", "cosine", "plateau", "averaging"] = Field(
        description="constant, tenth, cosine, plateau, averaging"
    )
    optimizer: Literal["training", "sgd", "adam"] = Field(
        default="training", description="the training's own, its state included, or a fresh one"
    )
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="default: the training's")
    batch_size: int | None = Field(default=None, ge=1, description="default: the training's")
    options: dict[str, Any] = Field(default_factory=dict, description="of torch's optimizer, beside the rate")

    @model_validator(mode="after")
    def _known(self) -> "FirstOrder":
        if self.options and self.optimizer == "training":
            raise ValueError(
                'options go with a fresh optimizer; give optimizer = "sgd" or "adam": the training\'s goes on as it is'
            )
        if "lr" in self.options:
            raise ValueError("options.lr: give lr beside the options")
        if self.optimizer == "adam":
            checked(torch.optim.Adam, self.options)
        elif self.optimizer == "sgd":
            checked(torch.optim.SGD, {"momentum": 0.9} | self.options)  # the training's, where none is given
        return self

    def start(self, context: StrategyContext) -> "FirstOrderStrategy":
        """The strategy."""
        return FirstOrderStrategy(self, context)


class FirstOrderStrategy(Strategy):
    """A first-order optimizer under a schedule over the budget; see `FirstOrder`."""

    def __init__(self, config: FirstOrder, context: StrategyContext):
        super().__init__(context)
        self.model.train()
        training = context.training
        self._schedule = config.schedule
        self._rate = (config.lr or training.lr) * (0.1 if config.schedule == "tenth" else 1.0)
        kind = training.optimizer if config.optimizer == "training" else config.optimizer
        parameters = self.model.parameters()
        self._optimizer = start_optimizer(kind, parameters, self._rate, training.momentum, config.options)
        if config.optimizer == "training" and context.checkpoint.get("optimizer") is not None:
            # torch would take over the checkpoint's own tensors, which the next start needs as they are
            self._optimizer.load_state_dict(copy.deepcopy(context.checkpoint["optimizer"]))
        self._set_lr(self._rate)
        patience = max(0, math.floor(context.training_share * training.epochs / 4) - 1)
        self._plateau = ReduceLROnPlateau(self._optimizer, factor=0.1, patience=patience)
        self._losses: list[Tensor] = []
        self._objectives = context.epochs(config.batch_size)
        self._average = Average(context) if config.schedule == "averaging" else None

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self._optimizer.param_groups[0]["lr"]

    def _set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def step(self, share: float) -> None:
        """Take one step on the next mini-batch."""
        if self._schedule == "cosine":
            self._set_lr(0.5 * self._rate * (1 + math.cos(math.pi * min(share, 1.0))))
        objective, rows, last_of_epoch = next(self._objectives)
        loss = self._optimizer.step(objective)
        self.context.work.gradients += rows
        if self._average is not None:
            self._average.update()
        if self._schedule == "plateau" and loss is not None:
            self._losses.append(loss)
            if last_of_epoch:
                self._plateau.step(float(torch.stack(self._losses).mean()))
                self._losses.clear()

    def held(self) -> dict[str, Tensor]:
        """The model's state, or that of the average."""
        return super().held() if self._average is None else self._average.state()

    def finished(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Batch norm's statistics anew where weights were averaged."""
        return state if self._average is None else self._average.with_statistics(state)


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
