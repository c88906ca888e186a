"""How training goes on from a checkpoint: a step at a time, whatever the method."""

import copy
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ...problems.problem import start_optimizer
from ...problems.user_code import FactoryError, function_named
from .averaging import Average
from .base import Strategy, copied
from .context import StrategyContext
from .second_order import HessianFreeStrategy, LBFGSStrategy, QuadraticRateStrategy
from .tables import LBFGS, Chain, Custom, FirstOrder, HessianFreeSteps, QuadraticRate, StrategyConfig

__all__ = ["Strategy", "make_strategy", "start_strategy"]


class FirstOrderStrategy(Strategy):
    """A first-order optimizer under a schedule over the budget; see `strategy_config.FirstOrder`."""

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


class ChainStrategy(Strategy):
    """One strategy after the other, by shares of the budget.

    The next one starts from what would have been evaluated of the one before (from the average, where weights were
    averaged), with a fresh optimizer and its own order of the data.
    """

    def __init__(self, config: Chain, context: StrategyContext):
        super().__init__(context)
        self._parts, self._begun, self._position = list(config.parts), 0.0, 0
        self._current = make_strategy(self._parts[0].strategy, context)

    @property
    def lr(self) -> float:
        """Of the strategy whose turn it is."""
        return self._current.lr

    def step(self, share: float) -> dict[str, Any] | None:
        """Take one step of the strategy whose turn it is."""
        while share >= self._parts[0].until and len(self._parts) > 1:
            self._hand_over()
        return self._current.step((share - self._begun) / (self._parts[0].until - self._begun))

    def _hand_over(self) -> None:
        self.model.load_state_dict(self._current.finished(copied(self._current.held())))
        self._begun, self._position = self._parts.pop(0).until, self._position + 1
        context = dataclasses.replace(
            self.context,
            checkpoint=self.context.checkpoint | {"optimizer": None},
            seed=self.context.seed + SEEDS_APART * self._position,
        )
        self._current = make_strategy(self._parts[0].strategy, context)

    def held(self) -> dict[str, Tensor]:
        """Of the strategy whose turn it is."""
        return self._current.held()

    def finished(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the strategy whose turn it is."""
        return self._current.finished(state)


SEEDS_APART = 1_000_003
"""Between the seeds of a chain's parts: further than anyone's seeds reach."""


def make_strategy(config: StrategyConfig, context: StrategyContext) -> Strategy:
    """The strategy of a table, starting at the context's model as it is."""
    makers = {
        FirstOrder: FirstOrderStrategy,
        HessianFreeSteps: HessianFreeStrategy,
        QuadraticRate: QuadraticRateStrategy,
        LBFGS: LBFGSStrategy,
        Chain: ChainStrategy,
    }
    if isinstance(config, Custom):
        made = function_named(config.factory)(context, **config.options)
        if not isinstance(made, Strategy):
            raise FactoryError(
                f"{config.factory} must return a latephase.study.strategies.base.Strategy, got {type(made).__name__}"
            )
        return made
    return makers[type(config)](config, context)


def start_strategy(config: StrategyConfig, context: StrategyContext) -> Strategy:
    """A strategy at the checkpoint, whatever became of the model before.

    The model gets the checkpoint's state, is in training mode and has no gradients; torch's generators are seeded.
    """
    context.model.load_state_dict(context.checkpoint["model"])
    context.model.train().zero_grad(set_to_none=True)
    torch.manual_seed(context.seed)
    return make_strategy(config, context)
