"""SGD on quadratics whose stationary time is known, and where each rule fires on them; see `detectors.py`.

f(theta) = 1/2 (theta - theta*)' H (theta - theta*), with H diagonal; a batch's gradient is that of f plus noise of the
variances H^p. Bias and variance of every coordinate follow a recursion of two by two matrices (theta and the momentum),
from which the expected loss of every step is known, and that of the stationary state.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from latephase.optim.late_phase import SASA, Detector, Distance, GradientNorm, Pflug, Slope
from latephase.optim.late_phase.detectors.distance import distance_slope, times_of_tests
from latephase.optim.late_phase.detectors.statistical import next_test, slope_t, stationarity

SIZE = 400
"""Parameters: the loss of fewer wanders by more of itself than that of any network."""
SEEDS = 200
FALLING, FLAT = 2.0, 1.05
"""Expected loss over the stationary one: above the first it falls, below the second it has fallen."""
BEYOND = 1.3
"""How much longer a run is than it takes to fall."""
NOISE = 1.0
"""Standard deviation of a batch's loss over the stationary loss, besides that which comes of the parameters."""


@dataclass(frozen=True)
class Quadratic:
    """A problem.

    Attributes:
        condition: of H, whose eigenvalues lie evenly in the logarithm, the largest being 1.
        power: of H, in the variances of the gradient's noise: 0 for the same in all directions.
        ratio: of the loss at the beginning to the stationary one.
        rate: learning rate.
        momentum: of SGD.
    """

    condition: float
    power: float
    ratio: float
    rate: float
    momentum: float = 0.0

    @property
    def name(self) -> str:
        """In a table."""
        noise = "" if self.condition == 1 else ", noise H" if self.power else ", noise I"
        momentum = f", momentum {self.momentum:g}" if self.momentum else ""
        start = f"{self.ratio:.0e}".replace("e+0", "e")
        return f"condition {self.condition:g}{noise}{momentum}, start {start}, rate {self.rate:g}"

    @property
    def curvature(self) -> Tensor:
        """Eigenvalues [P]."""
        return torch.logspace(0, -math.log10(self.condition), SIZE, dtype=torch.float64)


QUADRATICS = (
    Quadratic(1, 0, 1e2, 5e-4),
    Quadratic(1, 0, 1e4, 7e-4),
    Quadratic(100, 0, 1e2, 0.005),
    Quadratic(100, 0, 1e4, 0.03),
    Quadratic(100, 1, 1e2, 0.005),
    Quadratic(100, 1, 1e4, 0.03),
    Quadratic(1000, 1, 1e3, 0.05),
    Quadratic(30, 0, 1e3, 1e-3, 0.9),
    Quadratic(1, 0, 1e2, 1.5e-4),
    Quadratic(100, 0, 1e4, 0.01),
    Quadratic(30, 0, 1e3, 3e-4, 0.9),
    Quadratic(1000, 1, 1e3, 0.025),
    Quadratic(100, 1, 1e2, 0.0025),
)
"""The last five are two or three times slower than others: the first test of some rules comes after 8,000 steps, when
the loss of the others no longer falls."""


@dataclass(frozen=True)
class Known:
    """What the recursion says.

    Attributes:
        offset: distance of each coordinate from the minimum at the beginning.
        stationary: expected loss of the stationary state.
        losses: expected losses [T].
    """

    offset: float
    stationary: float
    losses: np.ndarray

    def falls_to(self, factor: float) -> int:
        """The first step at which the expected loss is within this factor of the stationary one."""
        return int(np.argmax(self.losses <= factor * self.stationary))


def known(problem: Quadratic, steps: int) -> Known:
    """Expected losses of a run, in float64."""
    h, a, m = problem.curvature, problem.rate, problem.momentum
    step = torch.zeros(SIZE, 2, 2, dtype=torch.float64)  # of (theta, v): v' = m v + g, theta' = theta - a v'
    step[:, 0, 0], step[:, 0, 1], step[:, 1, 0], step[:, 1, 1] = 1 - a * h, -a * m, h, m
    kick = torch.tensor([-a, 1.0], dtype=torch.float64)
    noise = h[:, None, None] ** problem.power * torch.outer(kick, kick)
    twice = torch.einsum("nij,nkl->nikjl", step, step).reshape(SIZE, 4, 4)
    eye = torch.eye(4, dtype=torch.float64)
    covariance = torch.linalg.solve(eye - twice, noise.reshape(SIZE, 4, 1)).reshape(SIZE, 2, 2)
    stationary = float(0.5 * (h * covariance[:, 0, 0]).sum())
    offset = math.sqrt(problem.ratio * stationary / float(0.5 * h.sum()))
    second = torch.zeros(SIZE, 2, 2, dtype=torch.float64)
    second[:, 0, 0] = offset**2
    losses = []
    for _ in range(steps):
        losses.append(float(0.5 * (h * second[:, 0, 0]).sum()))
        second = step @ second @ step.mT + noise
    return Known(offset, stationary, np.array(losses))


@dataclass(frozen=True)
class Streams:
    """What the rules need of runs, [T, seeds] each; norms have the beginning, too.

    Attributes:
        losses: of the batches.
        norms: |theta|^2 [T + 1].
        distances: |theta - theta_0|^2, after each step.
        products: <g_n, g_(n-1)>, 0 at first.
        gradients: |g|.
        rate: learning rate.
    """

    losses: Tensor
    norms: Tensor
    distances: Tensor
    products: Tensor
    gradients: Tensor
    rate: float


Seeing = Callable[[Tensor, Tensor, Tensor], None]


def simulate(
    problem: Quadratic, facts: Known, steps: int, seeds: int, draw: int, see: Seeing | None = None, noise: float = NOISE
) -> Streams:
    """SGD of many seeds at once.

    Args:
        problem: what to minimise.
        facts: of it.
        steps: how many.
        seeds: how many runs.
        draw: of the random numbers.
        see: called after each step with parameters [seeds, P], gradients and losses of the batches.
        noise: of the batches' losses, over the stationary loss.
    """
    generator = torch.Generator().manual_seed(draw)
    h = problem.curvature.float()
    spread = h ** (0.5 * problem.power)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    minimum = facts.offset * normal(seeds, SIZE)
    begin = facts.offset * normal(seeds, SIZE).sign()
    x, velocity, before = begin.clone(), torch.zeros(seeds, SIZE), torch.zeros(seeds, SIZE)
    kept = torch.empty(5, steps, seeds)
    first = (x + minimum).square().sum(1)
    for n in range(steps):
        slope = h * x
        gradient = slope + spread * normal(seeds, SIZE)
        kept[0, n] = 0.5 * (slope * x).sum(1) + noise * facts.stationary * normal(seeds)
        velocity = problem.momentum * velocity + gradient
        x = x - problem.rate * velocity
        theta = x + minimum
        kept[1, n], kept[2, n] = theta.square().sum(1), (x - begin).square().sum(1)
        kept[3, n], kept[4, n] = (gradient * before).sum(1), gradient.square().sum(1).sqrt()
        before = gradient
        if see is not None:
            see(theta, gradient, kept[0, n])
    norms = torch.cat([first.unsqueeze(0), kept[1]]).double()
    return Streams(kept[0].double(), norms, kept[2].double(), kept[3].double(), kept[4].double(), problem.rate)


def fires(detector: Detector, seen: Streams) -> np.ndarray:
    """The step at which a detector fires [seeds], infinity where it does not: its rule, for all seeds at once."""
    steps, found = len(seen.losses), []
    given = detector.settings
    if isinstance(detector, Distance):
        at = times_of_tests(given["q"], given["first"], steps)
        for before, now in itertools.pairwise(at):
            slope = distance_slope(seen.distances[now - 1], seen.distances[before - 1], given["q"])
            found.append((now, slope < given["threshold"]))
    elif isinstance(detector, SASA):
        values = (seen.norms[:-1] - seen.norms[1:]) / (2 * seen.rate)
        for n, newest in _tests(given, steps):
            found.append((n, stationarity(values[n - newest : n], given["significance"], given["composite"])[1]))
    elif isinstance(detector, Slope):
        for n, newest in _tests(given, steps):
            found.append((n, slope_t(seen.losses[n - newest : n]) >= stdtrit(newest - 2, given["significance"])))
    elif isinstance(detector, Pflug):
        products = seen.products.clone()
        products[: given["burn_in"]] = 0
        total = products.cumsum(0)
        found = [
            (n, total[n - 1] < 0) for n in range(given["every"], steps + 1, given["every"]) if n > given["burn_in"]
        ]
    elif isinstance(detector, GradientNorm):
        every = given["every"]
        means = seen.gradients[: steps // every * every].reshape(-1, every, seen.gradients.shape[1]).mean(1)
        share = means / means.cummax(0).values
        found = [((i + 1) * every, below < given["share"]) for i, below in enumerate(share)]
    return _first(found, seen.losses.shape[1])


def _tests(given: dict, steps: int) -> list[tuple[int, int]]:
    """Steps of the tests, and how many of the newest each looks at."""
    found, n = [], next_test(0, given["every"])
    while n <= steps:
        newest = max(1, math.ceil(given["share"] * n))
        if newest >= given["least"]:
            found.append((n, newest))
        n = next_test(n, given["every"])
    return found


def _first(found: Sequence[tuple[int, Tensor]], seeds: int) -> np.ndarray:
    first = np.full(seeds, np.inf)
    for n, fired in reversed(found):
        first[fired.numpy()] = n
    return first
