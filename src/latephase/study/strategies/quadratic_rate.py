"""Optimizers whose learning rate minimises a quadratic model: AdamQLR and SGDQLR."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from ...optim import SGDQLR, AdamQLR, DecreasingLoss, Fixed, LevenbergMarquardt, over
from ..outline import About, hint
from .base import Strategy
from .context import StrategyContext
from .redrawing import OnTrainingData
from .table import checked, made_by

TUNED = LevenbergMarquardt(1.0, factors=(0.95, 1.0526), range=(1e-8, math.inf), model="damped")
ADAM_QLR: dict[str, dict[str, Any]] = {
    "untuned": {},
    "tuned": {"damping": TUNED},
    "untuned_clipped": {"lr_clip": 0.1},
    "undamped": {"damping": Fixed(0.0)},
    "hessian": {"curvature": "hessian", "damping": TUNED},
    "hessian_untuned": {"curvature": "absolute_hessian", "damping": DecreasingLoss(1e-4, factors=(0.75, 2.0))},
    "amplified": {"damping": DecreasingLoss(), "amplification": 0.5},
}
"""The settings of Clarke and Hernandez-Lobato (2024), their ablations among them: options of `AdamQLR` by name.

"untuned" is that of `AdamQLR` itself, for batches of 3,200 rows; "tuned" is where the paper's search starts, which is
for batch size, damping and both factors; "hessian" is "tuned" with the Hessian in place of the Fisher matrix.
"""


class QuadraticRate(OnTrainingData):
    """Go on with an optimizer that finds its rate, on batches of `batch_size`."""

    optimizer: ClassVar[type]
    presets: ClassVar[Mapping[str, dict[str, Any]]] = {}
    batch_size: int | None = Field(default=None, ge=1, description="default: all rows")
    preset: str = Field(default="default", description='a named setting, such as "undamped"')
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> "QuadraticRate":
        optimizer = self.optimizer
        methods = [name for name, value in vars(optimizer).items() if isinstance(value, classmethod)]
        known = ["default", *self.presets, *methods]
        if self.preset not in known:
            near = hint(self.preset, known)
            raise ValueError(f"preset: {optimizer.__name__} has no {self.preset!r}{near}; known: {', '.join(known)}")
        checked(optimizer, self.options, self._make)
        return self

    def _make(self, parameters: Iterable[torch.nn.Parameter], **options: Any) -> Any:
        if self.preset in self.presets:
            return self.optimizer(parameters, **over(self.presets[self.preset], options))
        return made_by(self.optimizer, self.preset)(parameters, **options)

    def made(self, parameters: Iterable[torch.nn.Parameter]) -> Any:
        """The optimizer."""
        return self._make(parameters, **self.options)

    def start(self, context: StrategyContext) -> "QuadraticRateStrategy":
        """The strategy."""
        return QuadraticRateStrategy(self, context)


class AdamQLRSteps(QuadraticRate):
    """Go on with AdamQLR (Clarke and Hernandez-Lobato 2024) on batches of `batch_size`."""

    about: ClassVar = About("AdamQLR", second_order=True, counts=("gradients", "values", "forms", "products"))
    optimizer: ClassVar = AdamQLR
    presets: ClassVar = ADAM_QLR
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
        if self._optimizer.param_groups[0]["curvature"] != "ggn":
            work.products += rows
        else:
            work.forms += rows
