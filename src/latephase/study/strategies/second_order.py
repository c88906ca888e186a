"""Strategies that use curvature: Hessian-free steps, quadratic learning rates, K-FAC, L-BFGS."""

import math
from typing import Any

import torch
from torch import Tensor

from ...objective import Objective
from ...optim import HessianFree, KFACStepReport
from ...parameters import by_module, layerwise
from ...problems.sampling import Stream, draw, generator
from .base import Strategy
from .context import StrategyContext
from .tables import LBFGS, HessianFreeSteps, QuadraticRate, made_by
from .work import Work


class HessianFreeStrategy(Strategy):
    """Hessian-free steps on fresh batches, statistics and dropout frozen; see `strategy_config.HessianFreeSteps`."""

    def __init__(self, config: HessianFreeSteps, context: StrategyContext):
        super().__init__(context)
        self.model.eval()
        self._config = config
        self._optimizer: HessianFree = made_by(HessianFree, config.preset)(
            self._parameters(), **(self._blocks() | config.options)
        )
        self._steps = 0

    def _parameters(self) -> Any:
        """The parameters, a param group for each block of the curvature."""
        blocks = self._config.blocks
        if isinstance(blocks, list):
            return by_module(self.model, blocks)
        return layerwise(self.model) if blocks == "layerwise" else self.model.parameters()

    def _blocks(self) -> dict[str, Any]:
        return {} if self._config.blocks == "all" else {"blocks": True}

    @property
    def lr(self) -> float:
        """The step size that the last step took, before any the first trial's."""
        report = self._optimizer.report
        return self._optimizer.param_groups[0]["lr"] if report is None else report.lr

    def step(self, share: float) -> dict[str, Any]:
        """Take one Hessian-free step and return its report."""
        config, context = self._config, self.context
        self._steps += 1
        random = generator(Stream.AUGMENTATION, context.seed, self._steps)
        sizes: list[int] = [size for size in (config.batch_size, config.evaluation_batch_size) if size]
        parts = draw(context.rows, sizes, context.seed, self._steps) if sizes else [None]
        objective, *others = (context.objective(part, random) for part in parts)
        rows, evaluation_rows = config.batch_size or context.rows, config.evaluation_batch_size or 0
        curvature, curvature_rows = None, config.curvature_batch_size or rows
        if config.curvature_batch_size is not None:
            curvature = objective.subsample(curvature_rows, generator(Stream.CURVATURE, context.seed, self._steps))
            context.work.values += curvature_rows  # linearised beside the objective
        _count_values(objective, rows, context.work)
        if others:
            _count_values(others[0], evaluation_rows, context.work)
        self._optimizer.step(objective, evaluation=others[0] if others else None, curvature_objective=curvature)
        report = self._optimizer.report
        assert report is not None
        on_evaluation = report.products // 2 if config.options.get("debias") else 0  # one for each of the curvature's
        context.work.gradients += rows + (evaluation_rows if config.options.get("debias") else 0)
        context.work.products += (report.products - on_evaluation) * curvature_rows + on_evaluation * evaluation_rows
        return report.as_dict()


class QuadraticRateStrategy(Strategy):
    """Steps of AdamQLR, SGDQLR or K-FAC on mini-batches of epochs, as a first-order optimizer's."""

    def __init__(self, config: QuadraticRate, context: StrategyContext):
        super().__init__(context)
        self.model.train()
        self._objectives = context.epochs(config.batch_size or context.rows)
        self._optimizer = config.start(self.model.parameters())

    @property
    def lr(self) -> float:
        """The rate of the last step."""
        report = self._optimizer.report
        return math.nan if report is None else report.lr

    def step(self, share: float) -> dict[str, Any]:
        """Take one step and return its report."""
        objective, rows, _ = next(self._objectives)
        work = self.context.work
        _count_values(objective, rows, work)
        self._optimizer.step(objective)
        report = self._optimizer.report
        assert report is not None
        work.gradients += rows
        if isinstance(report, KFACStepReport):
            self._count_factors(report, rows)
        elif report.method != "none":
            # A quadratic form of the Hessian is a product.
            kind = "products" if self._optimizer.param_groups[0]["curvature"] == "hessian" else "forms"
            setattr(work, kind, getattr(work, kind) + rows)
        return report.as_dict()

    def _count_factors(self, report: KFACStepReport, rows: int) -> None:
        """Count K-FAC's forms, and a gradient for each probe of the factors and, where there is one, the diagonal."""
        self.context.work.forms += report.products * rows
        if report.factors_updated:
            estimates = 1 + bool(report.diagonal_layers)
            self.context.work.gradients += estimates * self._optimizer.param_groups[0]["probes"] * rows


class LBFGSStrategy(Strategy):
    """Steps of torch's L-BFGS, each with a batch of its own."""

    def __init__(self, config: LBFGS, context: StrategyContext):
        super().__init__(context)
        self.model.train()
        self._batch_size = config.batch_size
        self._optimizer = torch.optim.LBFGS(self.model.parameters(), **config.options)
        self._steps = 0

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self._optimizer.param_groups[0]["lr"]

    def step(self, share: float) -> None:
        """Take one step, which is several iterations on one batch."""
        self._steps += 1
        objective, rows = _fresh_batch(self.context, self._batch_size, self._steps)

        def closure() -> Tensor:
            self.context.work.gradients += rows
            return objective()

        self._optimizer.step(closure)


def _fresh_batch(context: StrategyContext, size: int | None, step: int) -> tuple[Objective, int]:
    """The objective of a step's own batch, and its rows; all rows where no size is given."""
    rows = None if size is None else draw(context.rows, [size], context.seed, step)[0]
    objective = context.objective(rows, generator(Stream.AUGMENTATION, context.seed, step))
    return objective, context.rows if size is None else size


def _count_values(objective: Objective, rows: int, work: Work) -> None:
    """Count an objective's forward passes from here on."""
    value = objective.value

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        work.values += rows
        return value(*args, **kwargs)

    objective.value = counted
