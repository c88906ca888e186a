"""First-order optimizers under a schedule, or with an average of the weights."""

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ...optim import FRESH, ExponentialAverage, WindowAverage, cosine, linear, one_minus_sqrt, start_fresh
from ...problems.problem import start_optimizer
from ..outline import About
from .averages import HORIZON, MARKS, WINDOW, Average, Mean, ScheduleFree, Shared
from .base import Strategy
from .context import StrategyContext
from .redrawing import OnTrainingData
from .table import checked

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": cosine,
    "linear": linear,
    "one_minus_sqrt": one_minus_sqrt,
}
"""Factors on the rate by the share of the budget that is spent."""


def check_fresh(name: str, options: dict[str, Any]) -> None:
    """Try out the options of one of `FRESH`.

    Raises:
        ValueError: it does not take them, or its package is not installed.
    """
    kind = FRESH[name].kind()
    matrix = torch.zeros(1, 1, requires_grad=True)
    checked(kind, options, lambda parameters, **given: kind([matrix, *parameters], **given))


class FirstOrder(OnTrainingData):
    """Go on with a first-order optimizer under a learning-rate schedule (Tatzel et al. 2022, Section 3.2).

    Schedules: "constant"; "tenth", a tenth of the rate; "cosine" and "linear", to zero over the budget;
    "one_minus_sqrt", which cools a constant rate by 1 - sqrt(share of the budget) (Haegele et al. 2024, "Scaling Laws
    and Compute-Optimal Training Beyond Fixed Training Durations", arXiv:2405.18392); "plateau", torch's
    ReduceLROnPlateau with a patience such that three reductions fit. With the constant rate go averages of the weights
    since the checkpoint, which are evaluated in place of them: "averaging", of all (`torch.optim.swa_utils`), "ema", an
    exponential one, "lawa", of the latest (`averages`); batch norm's statistics are renewed on the clock.
    """

    about: ClassVar = About("first order", counts=("gradients", "values"))
    kind: Literal["first_order"]
    schedule: Literal[
        "constant", "tenth", "cosine", "linear", "one_minus_sqrt", "plateau", "averaging", "ema", "lawa"
    ] = Field(description="constant, tenth, cosine, linear, one_minus_sqrt, plateau, averaging, ema, lawa")
    optimizer: Literal["training", "sgd", "adam", "adamw", "muon", "soap", "schedule_free"] = Field(
        default="training", description="the training's own, its state included, or a fresh one"
    )
    lr: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="default: the training's, or published with the optimizer"
    )
    batch_size: int | None = Field(default=None, ge=1, description="default: the training's")
    horizon: float | None = Field(
        default=None, gt=0, le=1, description=f"of ema, a share of the budget; default: {HORIZON}"
    )
    window: int | None = Field(
        default=None, ge=1, description=f"states that lawa averages, a hundredth of the budget apart; default: {WINDOW}"
    )
    mode: Literal["train", "eval"] = Field(
        default="train", description="of the model: eval freezes dropout, statistics"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="of the optimizer, beside the rate")

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
        elif self.optimizer in FRESH:
            check_fresh(self.optimizer, self.options)
        return self

    @model_validator(mode="after")
    def _averages(self) -> "FirstOrder":
        for key, schedule in (("horizon", "ema"), ("window", "lawa")):
            if getattr(self, key) is not None and self.schedule != schedule:
                raise ValueError(f'{key} goes with schedule = "{schedule}", got "{self.schedule}"')
        if self.optimizer == "schedule_free" and self.schedule != "constant":
            raise ValueError(
                f'optimizer "schedule_free" has an average of its own and goes with schedule = "constant", '
                f'got "{self.schedule}"'
            )
        return self

    def start(self, context: StrategyContext) -> "FirstOrderStrategy":
        """The strategy."""
        return FirstOrderStrategy(self, context)

    def rate(self, training: float) -> float:
        """The learning rate before any schedule.

        Args:
            training: the training's.
        """
        return self.lr or (FRESH[self.optimizer].lr if self.optimizer in FRESH else training)

    def average(self, context: StrategyContext, optimizer: Any) -> Average | None:
        """What is evaluated in place of the last weights, if that is not themselves."""
        if self.optimizer == "schedule_free":
            return ScheduleFree(context, optimizer)
        if self.schedule == "ema":
            return Shared(context, ExponentialAverage(self.horizon or HORIZON))
        if self.schedule == "lawa":
            return Shared(context, WindowAverage(self.window or WINDOW, MARKS))
        return Mean(context) if self.schedule == "averaging" else None


class FirstOrderStrategy(Strategy):
    """A first-order optimizer under a schedule over the budget; see `FirstOrder`."""

    def __init__(self, config: FirstOrder, context: StrategyContext):
        super().__init__(context)
        self.model.train(config.mode == "train")
        training = context.training
        self._schedule = config.schedule
        self._rate = config.rate(training.lr) * (0.1 if config.schedule == "tenth" else 1.0)
        self._optimizer = self._started(config)
        if config.optimizer == "training" and context.checkpoint.get("optimizer") is not None:
            # torch would take over the checkpoint's own tensors, which the next start needs as they are
            self._optimizer.load_state_dict(copy.deepcopy(context.checkpoint["optimizer"]))
        self._set_lr(self._rate)
        patience = max(0, math.floor(context.training_share * training.epochs / 4) - 1)
        self._plateau = ReduceLROnPlateau(self._optimizer, factor=0.1, patience=patience)
        self._losses: list[Tensor] = []
        self._objectives = context.epochs(config.batch_size)
        self._average = config.average(context, self._optimizer)

    def _started(self, config: FirstOrder) -> Any:
        """The optimizer, fresh."""
        training, parameters = self.context.training, self.model.parameters()
        if config.optimizer in FRESH:
            return start_fresh(config.optimizer, parameters, self._rate, config.options)
        kind = training.optimizer if config.optimizer == "training" else config.optimizer
        return start_optimizer(kind, parameters, self._rate, training.momentum, config.options)

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self._optimizer.param_groups[0]["lr"]

    def _set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def step(self, share: float) -> None:
        """Take one step on the next mini-batch."""
        if self._schedule in SCHEDULES:
            self._set_lr(self._rate * SCHEDULES[self._schedule](min(share, 1.0)))
        objective, rows, last_of_epoch = next(self._objectives)
        loss = self._optimizer.step(objective)
        self.context.work.gradients += rows
        if self._average is not None:
            self._average.update(share)
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
