"""The distance from where training began: it grows while training travels, and not when it wanders in a ball."""

import math
from typing import Any

from torch import Tensor

from .arguments import check_between, check_whole
from .detector import Detector
from .vectors import copied, squared_distance
from .watching import Seen


def times_of_tests(q: float, first: int, until: int) -> list[int]:
    """Numbers of steps floor(q^k) up to a last one, from k = first on, each once."""
    times: list[int] = []
    k = first
    while (n := math.floor(q**k + 1e-9)) <= until:  # rounding must not make 3 of 1.5^k = 4
        if n >= 1 and (not times or n > times[-1]):
            times.append(n)
        k += 1
    return times


def distance_slope(now: Tensor, before: Tensor, q: float) -> Tensor:
    """Slope [...] of log |theta_n - theta_0|^2 over log n, from its values at n and at n/q."""
    return (now.log() - before.log()) / math.log(q)


class Distance(Detector):
    """Pesme, Dieuleveut and Flammarion (2020): fires when the squared distance from the start grows too slowly.

    D_n = |theta_n - theta_0|^2 with theta_0 where the learning rate was set. At n = q^k the slope of log D_n over
    log n, from n/q to n, is 2 for steps in one direction, 1 for a random walk and 0 in a ball; below the threshold it
    fires. Between these n a step costs nothing; one copy of the parameters is kept.

    A start far from the minimum makes it fire too early, since then D_n hardly grows when only the last per cent of the
    way remain.

    Args:
        threshold: of the slope. Default: 0.6, the paper's.
        q: ratio of the numbers of steps at which it looks. Default: 1.5, the paper's.
        first: the k of the first look. Default: 5, the paper's.

    Raises:
        ValueError: a setting out of range.

    References:
        S. Pesme, A. Dieuleveut, N. Flammarion: On Convergence-Diagnostic based Step Sizes for Stochastic Gradient
        Descent. ICML 2020, arXiv 2007.00534.
    """

    kind = "distance"
    label = "slope of log distance over log steps"

    def __init__(self, threshold: float = 0.6, q: float = 1.5, first: int = 5):
        check_between("Distance.threshold", threshold, 0, 2)
        check_between("Distance.q", q, 1, math.inf)
        check_whole("Distance.first", first, 0)
        self.level = threshold
        super().__init__(threshold=threshold, q=q, first=first)

    def _begin(self, now: Seen) -> None:
        self._kept.update(start=copied(now.parameters), before=None)

    def _due(self, steps: int) -> bool:
        q, first = self.settings["q"], self.settings["first"]
        return steps in times_of_tests(q, first, steps)[-1:]

    def _test(self, steps: int, now: Seen) -> tuple[float | None, bool]:
        here = squared_distance(now.parameters, self._kept["start"])
        before: Any = self._kept["before"]
        self._kept["before"] = here
        if before is None:
            return None, False
        slope = float(distance_slope(here, before.to(here.device), self.settings["q"]))
        return slope, slope < self.settings["threshold"]
