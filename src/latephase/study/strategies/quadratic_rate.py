"""Optimizers whose learning rate minimises a quadratic model: AdamQLR and SGDQLR."""

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from ...optim import SGDQLR, AdamQLR
from ..outline import About, hint
from .base import Strategy
from .context import StrategyContext
from .table import StrategyTable, checked, made_by


class QuadraticRate(StrategyTable):
    """Go on with an optimizer that finds its rate, on batches of `batch_size`."""

    optimizer: ClassVar[type]
    batch_size: int | None = Field(default=None, ge=1, description="default: all rows")
    preset: str = Field(default="default", description='a named setting, such as "undamped"')
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> "QuadraticRate":
        optimizer = self.optimizer
        known = ["default", *(name for name, value in vars(optimizer).items() if isinstance(value, classmethod))]
        if self.preset not in known:
            near = hint(self.preset, known)
            raise ValueError(f"preset: {optimizer.__name__} has no {self.preset!r}{near}; known: {', '.join(known)}")
        checked(optimizer, self.options, self.preset)
        return self

    def made(self, parameters: Iterable[torch.nn.Parameter]) -> Any:
        """The optimizer."""
        return made_by(self.optimizer, self.preset)(parameters, **self.options)

    def start(self, context: StrategyContext) -> "QuadraticRateStrategy":
        """The strategy."""
        return QuadraticRateStrategy(self, context)


class AdamQLRSteps(QuadraticRate):
    """Go on with AdamQLR (Clarke and Hernandez-Lobato 2024) on batches of `batch_size`."""

    about: ClassVar = About("AdamQLR", second_order=True, counts=("gradients", "values", "forms", "products"))
    optimizer: ClassVar = AdamQLR
    kind: Literal["adamqlr"]


class SGDQLRSteps(QuadraticRate):
    """Go on with SGDQLR, the same with a momentum-free base."""

    about: ClassVar = About("SGDQLR", second_order=True, counts=("gradients", "values", "forms", "products"))
    optimizer: ClassVar = SGDQLR
    kind: Literal["sgdqlr"]


class QuadraticRateStrategy(Strategy):
    """Steps of AdamQLR or SGDQLR on mini-batches of epochs, as a first-order optimizer's."""

    def __init__(self, config: QuadraticRate, context: StrategyContext):
        super().__init__(context)
        self.model.train()
        self._objectives = context.epochs(config.batch_size or context.rows)
        self._optimizer = config.made(self.model.parameters())

    @property
    def lr(self) -> float:
        """The rate of the last step."""
        report = self._optimizer.report
        return math.nan if report is None else report.lr

    def step(self, share: float) -> dict[str, Any]:
        """Take one step and return its report."""
        objective, rows, _ = next(self._objectives)
        self._optimizer.step(objective)
        report = self._optimizer.report
        assert report is not None
        self.context.work.gradients += rows
        self.context.work.values += objective.value_calls * rows
        self._count(report, rows)
        return report.as_dict()

    def _count(self, report: Any, rows: int) -> None:
        """Count what the report says beside gradient and values: a form, which is a product of the Hessian's."""
        work = self.context.work
        if report.method == "none":
            return
        if self._optimizer.param_groups[0]["curvature"] == "hessian":
            work.products += rows
        else:
            work.forms += rows
