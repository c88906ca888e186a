"""SASA+ and SLOPE: tests of hypotheses on the newest part of what a run has shown."""

import math
from typing import Any

import torch
from torch import Tensor

from ....student import student_quantile
from .arguments import check_between, check_whole
from .detector import Detector
from .series import Series
from .vectors import squared_norm
from .watching import Seen


def batch_means(values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean of a correlated series with its standard error, by the means of about sqrt(n) batches.

    Args:
        values: [n, ...], n >= 4; oldest first.

    Returns:
        mean [...], standard error [...], degrees of freedom: batches less one.
    """
    n = len(values)
    size = math.isqrt(n)
    batches = n // size
    means = values[n - batches * size :].reshape(batches, size, *values.shape[1:]).mean(1)
    mean = values.mean(0)
    variance = size * (means - mean).square().sum(0) / (batches - 1)
    return mean, (variance / n).sqrt(), batches - 1


def stationarity(values: Tensor, significance: float, composite: bool) -> tuple[Tensor, Tensor]:
    """SASA+'s test that a series has the mean zero, and that both of its halves say so.

    Args:
        values: [n, ...], n >= 4.
        significance: of the confidence interval.
        composite: whether the intervals of both halves must hold zero, in place of that of the whole.

    Returns:
        The mean over half the width of its interval [...], and whether it is stationary [...].
    """
    mean, error, freedom = batch_means(values)
    width = -student_quantile(freedom, significance / 2) * error
    first, second = values[: len(values) // 2].mean(0), values[len(values) // 2 :].mean(0)
    inside = ((first.abs() < width) & (second.abs() < width)) if composite else mean.abs() < width
    return mean / width, inside & (first * second > 0)


def slope_t(values: Tensor) -> Tensor:
    """The t-statistic [...] of the slope of the regression of values [n, ...] on their index; n >= 3."""
    n = len(values)
    shape = (n, *[1] * (values.dim() - 1))
    x = (torch.arange(n, dtype=values.dtype, device=values.device) - (n - 1) / 2).reshape(shape)
    centred = values - values.mean(0)
    slope = (x * centred).sum(0) / x.square().sum()
    residual = (centred - slope * x).square().sum(0)
    return slope / (residual / (n - 2) / x.square().sum()).sqrt()


def next_test(steps: int, every: int | float) -> int:
    """When to test after a test at so many steps: so many later, or a share later, from a hundred on."""
    if isinstance(every, int):
        return steps + every
    return max(100, math.ceil(steps * (1 + every)))


class _Tested(Detector):
    """A detector that tests the newest share of a series from time to time."""

    def _check_settings(self, significance: float, share: float, least: int, every: int | float) -> None:
        name = type(self).__name__
        check_between(f"{name}.significance", significance, 0, 1)
        check_between(f"{name}.share", share, 0, 1 + 1e-12)
        check_whole(f"{name}.least", least, 4)
        if isinstance(every, float):
            check_between(f"{name}.every", every, 0, 1)
        else:
            check_whole(f"{name}.every", every)

    def _empty(self) -> dict[str, Any]:
        return {"series": Series(self.settings["share"]), "next": next_test(0, self.settings["every"])}

    def _due(self, steps: int) -> bool:
        if steps < self._kept["next"]:
            return False
        self._kept["next"] = next_test(steps, self.settings["every"])
        return True

    def _newest(self) -> Tensor | None:
        values = self._ignore(self._kept["series"].newest())
        return values if len(values) >= self.settings["least"] else None


class SASA(_Tested):
    """SASA+, Zhang, Lang, Liu and Xiao (2020): tests the equation that holds in the stationary state.

    In it E[<theta, d> - alpha/2 |d|^2] = 0, with d the step over the rate alpha, whatever made the step, momentum
    included. As the equation of the step goes, the left side is (|theta_n|^2 - |theta_(n+1)|^2) / (2 alpha): a norm of
    the parameters is all that a step costs, and the mean over a window is what |theta|^2 has lost in it. It is compared
    with zero by a t-test with the variance of batch means, on the newest part of the steps. Several param groups add
    up, each with its rate.

    The first release of this rule by its authors computes the variance as if steps were independent, and has the
    length of a batch for the number of batches in the degrees of freedom. Here they are as the paper has them.

    Args:
        significance: of the confidence interval. Default: 0.05, the authors'.
        share: of all steps, which is tested; the newest. Default: 1/8, the authors'.
        least: steps in this share before there is a test. Default: 1000, the authors'.
        every: steps between tests. Default: 100, the authors'.
        composite: whether both halves must have a mean near zero, as in the authors' first test. Default: True.

    Raises:
        ValueError: a setting out of range.

    References:
        P. Zhang, H. Lang, Q. Liu, L. Xiao: Statistical Adaptive Stochastic Gradient Methods. 2020, arXiv 2002.10597.
        S. Yaida: Fluctuation-dissipation relations for stochastic gradient descent. ICLR 2019, arXiv 1810.00004.
    """

    kind = "sasa"
    label = "mean over half its confidence interval"
    level = 1.0

    def __init__(
        self,
        significance: float = 0.05,
        share: float = 0.125,
        least: int = 1000,
        every: int = 100,
        composite: bool = True,
    ):
        self._check_settings(significance, share, least, every)
        if not isinstance(composite, bool):
            raise ValueError(f"SASA.composite must be True or False, got {composite!r}")
        super().__init__(significance=significance, share=share, least=least, every=every, composite=composite)

    def _begin(self, now: Seen) -> None:
        self._kept["norms"] = [squared_norm(group) for group in now.groups]

    def _take(self, now: Seen, loss: Tensor | None) -> None:
        norms = [squared_norm(group) for group in now.groups]
        terms = [(before - after) / (2 * rate) for before, after, rate in
                 zip(self._kept["norms"], norms, now.rates, strict=True) if rate > 0]  # fmt: skip
        self._kept["norms"] = norms
        if terms:
            self._kept["series"].add(torch.stack([term.to(terms[0].device) for term in terms]).sum())

    def _test(self, steps: int, now: Seen) -> tuple[float | None, bool]:
        values = self._newest()
        if values is None:
            return None, False
        ratio, stationary = stationarity(values, self.settings["significance"], self.settings["composite"])
        return float(ratio), bool(stationary)


class Slope(_Tested):
    """SLOPE of the same program: fires when the loss of the newest steps no longer falls significantly.

    A line is fitted to the losses of the newest steps' batches; a one-sided t-test asks whether its slope is negative.

    The defaults are not the authors', which `Slope.published()` has: with those there is no test before 8,000 steps,
    and a slow fall goes unseen in the eighth that is looked at. These were chosen on quadratics whose stationary time
    is known: docs/detectors.md. Where batches' losses spread by twice what a smaller rate would gain, or more, it often
    fires too early.

    Args:
        significance: of the test: the larger, the less a fall must show to count as one. Default: 0.2.
        share: of all steps, which is tested; the newest. Default: 0.22.
        least: losses in this share before there is a test. Default: 1000, the authors': fewer cannot tell a fall from
            the noise of batches. So the first test is after some 4,600 steps.
        every: steps between tests; a float below 1 for a share of the steps so far. Default: 0.05, so that a long run
            is not tested so often that chance fires it.

    Raises:
        ValueError: a setting out of range.

    References:
        As for `SASA`.
    """

    kind = "slope"
    wants = "loss"
    label = "t-statistic of the slope of the loss"

    def __init__(self, significance: float = 0.2, share: float = 0.22, least: int = 1000, every: int | float = 0.05):
        self._check_settings(significance, share, least, every)
        self.level = student_quantile(10**9, significance)
        super().__init__(significance=significance, share=share, least=least, every=every)

    @classmethod
    def published(cls) -> "Slope":
        """With the authors' settings: significance 0.05, the newest eighth, at least 1000 losses, every 100 steps."""
        return cls(significance=0.05, share=0.125, least=1000, every=100)

    def _take(self, now: Seen, loss: Tensor | None) -> None:
        assert loss is not None
        self._kept["series"].add(loss)

    def _test(self, steps: int, now: Seen) -> tuple[float | None, bool]:
        values = self._newest()
        if values is None:
            return None, False
        t = float(slope_t(values))
        return t, t >= student_quantile(len(values) - 2, self.settings["significance"])


def default_detector() -> Slope:
    """The detector that wins the comparison of docs/detectors.md: `Slope` with its defaults."""
    return Slope()
