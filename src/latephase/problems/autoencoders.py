"""The deep autoencoders of Hinton and Salakhutdinov (2006), the first successes of Hessian-free optimization."""

import functools
from typing import Literal

import torch
from torch import nn

from . import data
from .architectures import MNIST_WIDTHS, Initialize, autoencoder, sparse_
from .augmentation import to_unit
from .curves import curves_splits
from .faces import faces_splits
from .images import load
from .metrics import squared_error_per_row
from .problem import Problem, Splits, TrainingSetting, parts_of

CURVES_WIDTHS = (784, 400, 200, 100, 50, 25, 6)
FACES_WIDTHS = (625, 2000, 1000, 500, 30)

SETTING = TrainingSetting(lr=1e-3, batch_size=200, epochs=500, optimizer="adam")
"""The batch of Sutskever et al. (2013, Section 3); Adam, the first-order method that Zhang et al. compare with."""

Initialization = Literal["xavier", "sparse"]


def _initialize(initialization: Initialization) -> Initialize:
    if initialization not in ("xavier", "sparse"):
        raise ValueError(f"initialization must be 'xavier' or 'sparse', got {initialization!r}")
    return nn.init.xavier_uniform_ if initialization == "xavier" else sparse_


def _reconstructed(splits: Splits) -> Splits:
    """Splits of images [N, ...] with the images themselves, flat and from 0 to 1, as targets."""
    pixels = [to_unit(images.flatten(1)) for images, _ in parts_of(splits)]
    return Splits(*((part, part) for part in pixels))


def _load_mnist(rows: int | None) -> Splits:
    return _reconstructed(load("mnist", rows))


def _load_curves() -> Splits:
    return _reconstructed(curves_splits())


def _load_faces() -> Splits:
    return faces_splits(data.olivetti_faces())


def mnist_autoencoder(
    *, rows: int | None = None, initialization: Initialization = "xavier", weight_decay: float = 0.0
) -> Problem:
    """The autoencoder of MNIST (Martens 2010; Zhang et al. 2017).

    Args:
        rows: use the first so many training images only, and a fifth as many test images. Default: all.
        initialization: "xavier", or Martens' "sparse" one. Default "xavier", with which it trains faster.
        weight_decay: L2 coefficient on all parameters. Default 0; Martens' second column has 1e-5 to 2e-5.
    """
    return Problem(
        name="mnist_autoencoder",
        version=1,
        title="autoencoder on MNIST",
        description=(
            "MNIST (50,000 training, 10,000 validation, 10,000 test images) through a code of 30 numbers; "
            "784-1000-500-250-30 logistic units and their mirror, 2,837,314 parameters; binary cross-entropy."
        ),
        model=functools.partial(autoencoder, MNIST_WIDTHS, _initialize(initialization)),
        loss=nn.BCEWithLogitsLoss(),
        load=functools.partial(_load_mnist, rows),
        training=SETTING,
        source="Martens (2010), Section 5; Zhang et al. (2017)",
        weight_decay=weight_decay,
        metrics=(squared_error_per_row(torch.sigmoid),),
        dataset="mnist",
    )


def curves_autoencoder(*, initialization: Initialization = "xavier", weight_decay: float = 0.0) -> Problem:
    """The autoencoder of CURVES (Martens 2010), on images drawn after the data's description.

    The published file is not to be had, so errors do not compare with published ones.

    Args:
        initialization: as in `mnist_autoencoder`.
        weight_decay: as in `mnist_autoencoder`.
    """
    return Problem(
        name="curves_autoencoder",
        version=1,
        title="autoencoder on curves",
        description=(
            "Generated images of curves (18,000 training, 2,000 validation, 10,000 test images) through a code of 6 "
            "numbers; 784-400-200-100-50-25-6 logistic units and their mirror, 842,340 parameters; binary "
            "cross-entropy."
        ),
        model=functools.partial(autoencoder, CURVES_WIDTHS, _initialize(initialization)),
        loss=nn.BCEWithLogitsLoss(),
        load=_load_curves,
        training=SETTING,
        source="Martens (2010), Section 5",
        weight_decay=weight_decay,
        metrics=(squared_error_per_row(torch.sigmoid),),
    )


def faces_autoencoder(*, initialization: Initialization = "xavier", weight_decay: float = 0.0) -> Problem:
    """The autoencoder of FACES (Martens 2010), on patches cut from the Olivetti faces after the data's description.

    The published file is another draw, so errors do not compare with published ones.

    Args:
        initialization: as in `mnist_autoencoder`.
        weight_decay: as in `mnist_autoencoder`.
    """
    return Problem(
        name="faces_autoencoder",
        version=1,
        title="autoencoder on faces",
        description=(
            "Turned and scaled patches of the Olivetti faces (103,500 training, 20,700 validation, 41,400 test patches "
            "of different people) through a code of 30 numbers; 625-2000-1000-500-30 logistic units and their mirror, "
            "7,537,655 parameters; squared error."
        ),
        model=functools.partial(autoencoder, FACES_WIDTHS, _initialize(initialization)),
        loss=nn.MSELoss(),
        load=_load_faces,
        training=SETTING,
        source="Martens (2010), Section 5",
        weight_decay=weight_decay,
        metrics=(squared_error_per_row(),),
        dataset="olivetti_faces",
    )
