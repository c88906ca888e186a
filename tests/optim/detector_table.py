"""The table of detectors that the tests of their contract go through: a new detector is one line of DETECTORS."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from latephase.optim.late_phase import SASA, Detector, Distance, GradientNorm, Pflug, Slope, default_detector

DETECTORS: dict[str, Callable[[], Detector]] = {
    "distance": lambda: Distance(first=2),
    "sasa": lambda: SASA(least=10, share=0.5, every=10),
    "slope": lambda: Slope(least=10, share=0.5, every=10),
    "slope, geometric": lambda: Slope(least=10, share=0.5, every=0.05),
    "default": default_detector,
    "pflug": lambda: Pflug(burn_in=5, every=10),
    "gradient_norm": lambda: GradientNorm(every=10),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.01),
}


@pytest.fixture(params=DETECTORS, name="detector")
def every_detector(request: Any) -> Detector:
    """Each of the table."""
    return DETECTORS[request.param]()


def known(detector: Detector) -> tuple[Any, ...]:
    """All that a detector says."""
    return detector.steps, detector.since, detector.statistic, detector.history


class Run:
    """A small noisy regression, whose batches are a function of the step's number.

    Attributes:
        model: two layers.
        seen: of each step loss, gradients and parameters before and after, as NumPy arrays, where `record` is set.
    """

    def __init__(self, optimizer: str = "SGD", record: bool = False):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.steps, self.record = 0, record
        self.seen: list[dict[str, Any]] = []

    def closure(self) -> torch.Tensor:
        """The loss on the next batch, with its gradients."""
        generator = torch.Generator().manual_seed(self.steps)
        x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        y = x.sum(1, keepdim=True).sin() + torch.randn(8, 1, generator=generator, dtype=torch.float64)
        self.optimizer.zero_grad()
        loss = (self.model(x) - y).square().mean()
        loss.backward()
        return loss

    def flat(self) -> Any:
        """Parameters [P]."""
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()]).numpy().copy()

    def step(self) -> None:
        """One step, by a closure."""
        before = self.flat()
        loss = self.optimizer.step(self.closure)
        if self.record:
            gradient = torch.cat([p.grad.reshape(-1) for p in self.model.parameters()]).numpy().copy()
            self.seen.append(
                {"loss": float(loss.detach()), "gradient": gradient, "before": before, "after": self.flat()}
            )
        self.steps += 1

    def go(self, steps: int) -> "Run":
        """So many steps."""
        for _ in range(steps):
            self.step()
        return self
