"""The regression problems of Clarke and Hernandez-Lobato (2024): tables of the UCI repository."""

import functools

import numpy as np
import torch
from torch import Tensor, nn

from . import data
from .architectures import mlp
from .images import SPLIT_SEED
from .metrics import rmse
from .problem import Problem, Splits, TrainingSetting
from .scaling import standardize

SIZES = {"energy": (588, 104, 76), "protein": (34_983, 6_174, 4_573)}
"""Rows for training, validation and test, as in the authors' program."""


class HalfSquaredError(nn.Module):
    """The mean of 0.5 (output - target)^2 over all elements, the paper's loss."""

    reduction = "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        return 0.5 * nn.functional.mse_loss(outputs, targets)

    def normalizer(self, targets: Tensor) -> int:
        """What the mean divides by."""
        return targets.numel()


def _load(name: str) -> Splits:
    """Standardised inputs [N, columns - 1] and target [N, 1] of a fixed random split."""
    table = data.uci(name)
    order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(table)))
    train, valid, test = ((part[:, :-1], part[:, -1:]) for part in table[order].split(SIZES[name]))
    return standardize(train, valid, test, targets=True)


def uci_energy() -> Problem:
    """The heating load of buildings, 8 inputs and 50 hidden units."""
    return Problem(
        name="uci_energy",
        version=1,
        title="MLP on UCI Energy",
        description=(
            "UCI Energy Efficiency (588 training, 104 validation, 76 test rows), standardised; 8-50-1 units with "
            "ReLUs, 501 parameters; half the squared error."
        ),
        model=functools.partial(mlp, (8, 50, 1)),
        loss=HalfSquaredError(),
        load=functools.partial(_load, "energy"),
        training=TrainingSetting(lr=1e-3, batch_size=588, epochs=4000, optimizer="adam"),
        source="Clarke and Hernandez-Lobato (2024), Section 4",
        metrics=(rmse,),
        dataset="uci_energy",
    )


def uci_protein() -> Problem:
    """The deviation of protein structures, 9 inputs and 100 hidden units."""
    return Problem(
        name="uci_protein",
        version=1,
        title="MLP on UCI Protein",
        description=(
            "UCI Protein (34,983 training, 6,174 validation, 4,573 test rows), standardised; 9-100-1 units with ReLUs, "
            "1,101 parameters; half the squared error."
        ),
        model=functools.partial(mlp, (9, 100, 1)),
        loss=HalfSquaredError(),
        load=functools.partial(_load, "protein"),
        training=TrainingSetting(lr=1e-3, batch_size=1000, epochs=200, optimizer="adam"),
        source="Clarke and Hernandez-Lobato (2024), Section 4",
        metrics=(rmse,),
        dataset="uci_protein",
    )
