"""K-FAC: its factors' direction, with rate and momentum from a quadratic model."""

from typing import Any, ClassVar, Literal

from ...optim import KFAC
from ..outline import About
from .context import StrategyContext
from .quadratic_rate import QuadraticRate, QuadraticRateStrategy


class KFACSteps(QuadraticRate):
    """Go on with K-FAC on batches of `batch_size`."""

    about: ClassVar = About("K-FAC", second_order=True, counts=("gradients", "values", "forms"))
    optimizer: ClassVar = KFAC
    kind: Literal["kfac"]

    def start(self, context: StrategyContext) -> "KFACStrategy":
        """The strategy."""
        return KFACStrategy(self, context)


class KFACStrategy(QuadraticRateStrategy):
    """Steps of K-FAC on mini-batches of epochs, as a first-order optimizer's."""

    def _count(self, report: Any, rows: int) -> None:
        """Count forms, and a gradient for each probe of the factors and, where there is one, the diagonal."""
        self.context.work.forms += report.products * rows
        if report.factors_updated:
            estimates = 1 + bool(report.diagonal_layers)
            self.context.work.gradients += estimates * self._optimizer.param_groups[0]["factors"].probes * rows
