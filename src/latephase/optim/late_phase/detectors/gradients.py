"""Two rules that ask the gradients of single batches: Pflug's inner products, and a norm below its maximum."""

import math
from typing import Any

from torch import Tensor

from .arguments import check_between, check_whole
from .detector import Detector
from .series import Series
from .vectors import copied, inner_product, squared_norm
from .watching import Seen


class Pflug(Detector):
    """Pflug (1983), Chee and Toulis (2018): fires when inner products of successive gradients sum up to less than 0.

    While training travels, gradients of successive batches agree, and <g_n, g_(n-1)> is positive in the mean; around a
    minimum it is a little negative. In a sum over thousands of noisy steps the little is lost, even on quadratics
    (Pesme et al. 2020): it is here to be compared with. One copy of the gradients is kept.

    Args:
        burn_in: steps before the sum begins. Default: 100, so that the first large gradients do not outweigh the rest.
        every: steps between tests, at which the sum is read. Default: 100.

    Raises:
        ValueError: a setting out of range.

    References:
        G. Pflug: On the determination of the step size in stochastic quasigradient methods, 1983.
        J. Chee, P. Toulis: Convergence diagnostics for stochastic gradient descent with constant learning rate.
        AISTATS 2018, arXiv 1710.06382.
    """

    kind = "pflug"
    wants = "gradients"
    label = "sum of inner products of gradients"

    def __init__(self, burn_in: int = 100, every: int = 100):
        check_whole("Pflug.burn_in", burn_in, 0)
        check_whole("Pflug.every", every)
        super().__init__(burn_in=burn_in, every=every)

    def _empty(self) -> dict[str, Any]:
        return {"last": None, "sum": None}

    def _take(self, now: Seen, loss: Tensor | None) -> None:
        gradients, last = copied(now.all_gradients), self._kept["last"]
        if last is not None and self.steps - self._origin > self.settings["burn_in"]:
            product = inner_product(gradients, last)
            so_far = self._kept["sum"]
            # A gradient that is not finite must not spoil the sum for good.
            product = product.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            self._kept["sum"] = product if so_far is None else so_far + product
        self._kept["last"] = gradients

    def _due(self, steps: int) -> bool:
        return steps % self.settings["every"] == 0 and self._kept["sum"] is not None

    def _test(self, steps: int, now: Seen) -> tuple[float | None, bool]:
        total = float(self._kept["sum"])
        return total, total < 0


class GradientNorm(Detector):
    """Fires when the norm of the gradients has fallen below a share of its maximum; a rule of thumb.

    Norms are averaged over the steps from one test to the next, and so compared with the largest of these averages.
    Where the noise of a batch is most of its gradient the norm hardly falls; where it is not it falls early.

    Args:
        share: of the maximum. Default: 0.9.
        every: steps that are averaged. Default: 100.

    Raises:
        ValueError: a setting out of range.
    """

    kind = "gradient_norm"
    wants = "gradients"
    label = "norm of gradients over its maximum"

    def __init__(self, share: float = 0.9, every: int = 100):
        self.level = check_between("GradientNorm.share", share, 0, 1)
        check_whole("GradientNorm.every", every)
        super().__init__(share=share, every=every)

    def _empty(self) -> dict[str, Any]:
        return {"norms": Series(1.0), "largest": 0.0}

    def _take(self, now: Seen, loss: Tensor | None) -> None:
        self._kept["norms"].add(squared_norm(now.all_gradients).sqrt())

    def _due(self, steps: int) -> bool:
        return self._kept["norms"].count >= self.settings["every"]

    def _test(self, steps: int, now: Seen) -> tuple[float | None, bool]:
        norms = self._ignore(self._kept["norms"].newest())
        self._kept["norms"] = Series(1.0)
        if not norms.numel():
            return None, False
        mean = float(norms.mean())
        self._kept["largest"] = max(self._kept["largest"], mean)
        ratio = mean / self._kept["largest"] if self._kept["largest"] > 0 else math.nan
        return ratio, ratio < self.settings["share"]
