"""Test problems that train in milliseconds, with everything that a run could disturb."""

import dataclasses
import os
import signal
from pathlib import Path

import torch
from torch import nn

from latephase.problems import Problem, Splits, TrainingSetting
from latephase.problems.metrics import relative_l2_error


def _three_classes() -> Splits:
    random = torch.Generator().manual_seed(5)
    inputs = torch.randn(160, 6, generator=random)
    targets = (inputs[:, :3] + 0.5 * torch.randn(160, 3, generator=random)).argmax(dim=1)
    parts = [(inputs[rows], targets[rows]) for rows in torch.arange(160).split([96, 32, 32])]
    return Splits(*parts)


def _other_rows(generator: torch.Generator):
    inputs = torch.randn(96, 6, generator=generator)
    return inputs, inputs[:, :3].argmax(dim=1)


def _shaken(inputs, targets, generator):
    return inputs + 0.05 * torch.randn(inputs.shape, generator=generator), targets


def noisy(*, optimizer: str = "sgd", dropout: float = 0.2, batch_norm: bool = True) -> Problem:
    """Dropout, batch norm, augmentation, momentum; four batches of 24 rows in an epoch."""

    def model() -> nn.Module:
        norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
        return nn.Sequential(nn.Linear(6, 8), norm, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))

    momentum = 0.9 if optimizer == "sgd" else 0.0
    return Problem(
        name="noisy",
        version=1,
        title="Noisy",
        description="Three classes of points.",
        model=model,
        loss=nn.CrossEntropyLoss(),
        load=_three_classes,
        training=TrainingSetting(lr=0.05, batch_size=24, epochs=4, optimizer=optimizer, momentum=momentum),
        weight_decay=1e-3,
        augment=_shaken,
        redraw=_other_rows,
    )


def _points() -> Splits:
    random = torch.Generator().manual_seed(6)
    inputs = torch.rand(40, 2, generator=random, dtype=torch.float32)  # whatever the default is
    targets = (3 * inputs[:, :1]).sin() * inputs[:, 1:]
    return Splits(*((inputs[rows], targets[rows]) for rows in torch.arange(40).split([24, 8, 8])))


def smooth(*, width: int = 5, dtype: str | None = None) -> Problem:
    """Regression on all 24 rows at once, nothing random after the weights; a dtype of its own where one is given."""

    def model() -> nn.Module:
        kind = None if dtype is None else getattr(torch, dtype)
        return nn.Sequential(nn.Linear(2, width, dtype=kind), nn.Tanh(), nn.Linear(width, 1, dtype=kind))

    return Problem(
        name="smooth",
        version=1,
        title="Smooth",
        description="A smooth function of two variables.",
        model=model,
        loss=nn.MSELoss(),
        load=_points,
        training=TrainingSetting(lr=0.1, batch_size=None, epochs=2, momentum=0.9),
        metrics=(relative_l2_error,),
    )


def mortal(*, way: str, until: str) -> Problem:
    """The noisy problem, whose training ends its process, in the way asked for, until there is a file."""

    def dying(inputs, targets, generator):
        if not Path(until).exists():
            os._exit(0) if way == "_exit" else os.kill(os.getpid(), signal.SIGKILL)
        return _shaken(inputs, targets, generator)

    return dataclasses.replace(noisy(), name="mortal", augment=dying)


def _zeros() -> Splits:
    part = (torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64))
    return Splits(part, part, part)


def flat() -> Problem:
    """A loss that no step can lower: all inputs are zero. All rows in every step."""
    return Problem(
        name="flat",
        version=1,
        title="Flat",
        description="No gradient.",
        model=lambda: nn.Linear(4, 2, bias=False),
        loss=nn.CrossEntropyLoss(),
        load=_zeros,
        training=TrainingSetting(lr=0.1, batch_size=None, epochs=40),
    )


class RandomInEval(nn.Linear):
    """A layer that draws from torch's generator, in eval mode as well."""

    def forward(self, inputs):
        return super().forward(inputs) + 0.01 * torch.randn(())


def draws_in_eval() -> Problem:
    """A model whose evaluation draws random numbers."""
    return Problem(
        name="draws_in_eval",
        version=1,
        title="Draws",
        description="Random in evaluation.",
        model=lambda: nn.Sequential(RandomInEval(6, 3), nn.Dropout(0.5)),
        loss=nn.CrossEntropyLoss(),
        load=_three_classes,
        training=TrainingSetting(lr=0.05, batch_size=24, epochs=4),
    )
