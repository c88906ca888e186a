"""How training goes on from a checkpoint: SGD under a schedule, or Hessian-free steps."""

import copy
import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..objective import Objective
from ..optim import HessianFree
from ..problems import Problem, Splits
from ..problems.problem import Data, row_count
from ..problems.sampling import Stream, batches, draw, generator
from .config import SGD, HessianFreeSteps, StrategyConfig, Study


class Strategy(Protocol):
    """One way to go on: a step at a time, data selection included."""

    model: nn.Module

    @property
    def lr(self) -> float:
        """The step size of the next step as far as it is known."""
        ...

    def step(self, share: float) -> dict[str, Any] | None:
        """Take one step, `share` of the budget being spent; what there is to log of it."""
        ...


def batch_objective(problem: Problem, model: nn.Module, data: Data, rows: Tensor, random) -> Objective:
    """The problem's objective on augmented rows of a split.

    Args:
        problem: gives loss, L2 term and augmentation.
        model: the model.
        data: the split.
        rows: indices into it.
        random: generator of the augmentation.
    """
    return problem.objective(model, problem.batch(data, rows, random))


def epochs_of_batches(
    problem: Problem, model: nn.Module, splits: Splits, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[Objective, bool]]:
    """Objectives of one mini-batch after the other from `epoch` on without end, and whether an epoch ends with it."""
    while True:
        random = generator(Stream.AUGMENTATION, seed, epoch)
        order = batches(row_count(splits.train), batch_size, seed, epoch)
        for index, rows in enumerate(order):
            yield batch_objective(problem, model, splits.train, rows, random), index == len(order) - 1
        epoch += 1


class SGDStrategy:
    """SGD from the checkpoint's state under a learning-rate schedule over the budget.

    Args:
        config: the schedule. "constant" keeps the rate, "tenth" divides it by ten at once, "cosine" goes to zero with
            the share of the budget that is spent, "plateau" is torch's ReduceLROnPlateau on the epochs' mean training
            loss, with a patience such that three reductions fit the budget.
        study: the study.
        problem: the problem.
        model: the model at the checkpoint; it is trained in place.
        splits: the data.
        checkpoint: what was saved.
        seed: of data order and augmentation.
    """

    def __init__(
        self,
        config: SGD,
        study: Study,
        problem: Problem,
        model: nn.Module,
        splits: Splits,
        checkpoint: dict[str, Any],
        seed: int,
    ):
        self.model = model.train()
        self._schedule = config.schedule
        self._lr = study.training.lr / 10 if config.schedule == "tenth" else study.training.lr
        self._optimizer = torch.optim.SGD(model.parameters(), lr=self._lr)
        self._optimizer.load_state_dict(checkpoint["optimizer"])
        self._set_lr(self._lr)
        patience = max(0, math.floor(study.budget_share * study.training.epochs / 4) - 1)
        self._plateau = ReduceLROnPlateau(self._optimizer, factor=0.1, patience=patience)
        self._losses: list[Tensor] = []
        size = study.training.batch_size
        self._objectives = epochs_of_batches(problem, model, splits, size, seed, checkpoint["epoch"] + 1)

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self._optimizer.param_groups[0]["lr"]

    def _set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def step(self, share: float) -> None:
        """Take one SGD step on the next mini-batch."""
        if self._schedule == "cosine":
            self._set_lr(0.5 * self._lr * (1 + math.cos(math.pi * min(share, 1.0))))
        objective, last_of_epoch = next(self._objectives)
        loss = self._optimizer.step(objective)
        if self._schedule == "plateau" and loss is not None:
            self._losses.append(loss)
            if last_of_epoch:
                self._plateau.step(float(torch.stack(self._losses).mean()))
                self._losses.clear()


class HessianFreeStrategy:
    """Hessian-free steps from the checkpoint, on fresh disjoint batches, statistics and dropout frozen.

    Args:
        config: batch sizes and options of the optimizer.
        problem: the problem.
        model: the model at the checkpoint; it is trained in place, in eval mode.
        splits: the data.
        seed: of data order and augmentation.
    """

    def __init__(self, config: HessianFreeSteps, problem: Problem, model: nn.Module, splits: Splits, seed: int):
        self.model = model.eval()
        self._config, self._problem, self._splits, self._seed = config, problem, splits, seed
        self._optimizer = HessianFree(model.parameters(), **config.options)
        self._steps = 0

    @property
    def lr(self) -> float:
        """The step size that the last step took, before any the first trial's."""
        report = self._optimizer.report
        return self._optimizer.param_groups[0]["lr"] if report is None else report.lr

    def step(self, share: float) -> dict[str, Any]:
        """Take one Hessian-free step and return its report."""
        sizes = (self._config.batch_size, self._config.evaluation_batch_size or 1)
        self._steps += 1
        random = generator(Stream.AUGMENTATION, self._seed, self._steps)
        objective, evaluation = (
            batch_objective(self._problem, self.model, self._splits.train, rows, random)
            for rows in draw(row_count(self._splits.train), sizes, self._seed, self._steps)
        )
        self._optimizer.step(objective, evaluation)
        assert self._optimizer.report is not None
        return self._optimizer.report.as_dict()


def start_strategy(
    config: StrategyConfig,
    study: Study,
    problem: Problem,
    model: nn.Module,
    splits: Splits,
    checkpoint: dict,
    seed: int,
) -> Strategy:
    """A strategy at a checkpoint: a copy of the model with the checkpoint's state, torch's generator seeded."""
    model = copy.deepcopy(model)
    model.load_state_dict(checkpoint["model"])
    torch.manual_seed(seed)
    if isinstance(config, SGD):
        return SGDStrategy(config, study, problem, model, splits, checkpoint, seed)
    return HessianFreeStrategy(config, problem, model, splits, seed)
