"""The problems of Tatzel et al. (2022) and their kin, from the benchmark suite DeepOBS.

Settings are those of DeepOBS's PyTorch version (Schneider, Balles and Hennig 2019) and of "Descending through a Crowded
Valley" (Schmidt, Schneider and Hennig 2021), which tuned the rates of plain SGD for validation accuracy in DeepOBS's
TensorFlow version. Where DeepOBS errs, an option chooses between its way and the intended one.
"""

import functools
from typing import Literal

from torch import nn

from .architectures import all_cnn_c, cnn_2c2d, cnn_3c3d, deepobs_mlp, wrn_16_4
from .augmentation import to_unit
from .images import CIFAR10, CIFAR100, SVHN, Normalization, augment_deepobs, deepobs_train_evaluation, load, preparation
from .problem import Problem, TrainEvaluation, TrainingSetting, is_matrix, is_weight

TrainEvaluationOption = Literal["train", "deepobs"]

SOURCE = "Tatzel et al. (2022), Table 1; Schneider et al. (2019), DeepOBS"


def _train_evaluation(option: TrainEvaluationOption) -> TrainEvaluation | None:
    if option not in ("train", "deepobs"):
        raise ValueError(f"train_evaluation must be 'train' or 'deepobs', got {option!r}")
    return deepobs_train_evaluation if option == "deepobs" else None


def cifar10_3c3d(
    *,
    rows: int | None = None,
    augment: bool = True,
    normalization: Normalization = "channel",
    train_evaluation: TrainEvaluationOption = "train",
) -> Problem:
    """3C3D on CIFAR-10 (Tatzel et al. 2022).

    Args:
        rows: use the first so many training images only, and a fifth as many test images. Default: all.
        augment: shift, mirror and recolour training images, as DeepOBS does. Default True.
        normalization: "channel", as DeepOBS's PyTorch version; or "image", as its TensorFlow version, in which the
            rate was tuned.
        train_evaluation: "train": the training loss is measured on the training split as it is. "deepobs": on 10,000
            rows drawn anew each time, augmented, validation rows among them, as DeepOBS does.
    """
    return Problem(
        name="cifar10_3c3d",
        version=1,
        title="3C3D on CIFAR-10",
        description=(
            "CIFAR-10 (40,000 training, 10,000 validation, 10,000 test images), shifted, mirrored and recoloured in "
            "training; three convolutions and three dense layers, 895,210 parameters; cross-entropy with an L2 term of "
            "0.002 on the weights."
        ),
        model=cnn_3c3d,
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(load, "cifar10", rows),
        training=TrainingSetting(lr=0.06796578090758151, batch_size=128, epochs=100),
        source=SOURCE,
        weight_decay=(0.002, is_weight),
        prepare=preparation(CIFAR10, normalization),
        augment=augment_deepobs if augment else None,
        train_evaluation=_train_evaluation(train_evaluation),
        dataset="cifar10",
    )


def cifar100_allcnnc(
    *,
    rows: int | None = None,
    augment: bool = True,
    normalization: Normalization = "channel",
    train_evaluation: TrainEvaluationOption = "train",
) -> Problem:
    """ALL-CNN-C on CIFAR-100 (Tatzel et al. 2022); dropout makes its loss random in training mode.

    Args:
        rows: as in `cifar10_3c3d`.
        augment: as in `cifar10_3c3d`.
        normalization: as in `cifar10_3c3d`.
        train_evaluation: as in `cifar10_3c3d`.
    """
    return Problem(
        name="cifar100_allcnnc",
        version=1,
        title="ALL-CNN-C on CIFAR-100",
        description=(
            "CIFAR-100 (40,000 training, 10,000 validation, 10,000 test images), shifted, mirrored and recoloured in "
            "training; nine convolutions with dropout, 1,387,108 parameters; cross-entropy with an L2 term of 5e-4 on "
            "the weights."
        ),
        model=all_cnn_c,
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(load, "cifar100", rows),
        training=TrainingSetting(lr=0.17123375973, batch_size=256, epochs=350),
        source=SOURCE,
        weight_decay=(5e-4, is_weight),
        prepare=preparation(CIFAR100, normalization),
        augment=augment_deepobs if augment else None,
        train_evaluation=_train_evaluation(train_evaluation),
        dataset="cifar100",
    )


def svhn_wrn164(
    *,
    rows: int | None = None,
    augment: bool = True,
    normalization: Normalization = "channel",
    train_evaluation: TrainEvaluationOption = "train",
    bn_momentum: float = 0.9,
) -> Problem:
    """WRN-16-4 on SVHN (Tatzel et al. 2022).

    Args:
        rows: as in `cifar10_3c3d`.
        augment: shift and recolour training images, without mirroring, as DeepOBS does. Default True.
        normalization: as in `cifar10_3c3d`.
        train_evaluation: as in `cifar10_3c3d`.
        bn_momentum: weight of a new batch in batch norm's running statistics. Default 0.9, DeepOBS's PyTorch version,
            on which the published curves rest; its TensorFlow version means what torch calls 0.1. With 0.9 the
            statistics are little more than the last batch's, and it is they that matter in eval mode.
    """
    if not 0 < bn_momentum <= 1:
        raise ValueError(f"bn_momentum must be above 0 and at most 1, got {bn_momentum!r}")
    return Problem(
        name="svhn_wrn164",
        version=1,
        title="WRN-16-4 on SVHN",
        description=(
            "SVHN without its extra images (47,225 training, 26,032 validation, 26,032 test images), shifted and "
            "recoloured in training; a wide residual network, 2,748,890 parameters; cross-entropy with an L2 term of "
            "5e-4 on the weights of convolutions and dense layer."
        ),
        model=functools.partial(wrn_16_4, bn_momentum=bn_momentum),
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(load, "svhn", rows),
        training=TrainingSetting(lr=0.025378155083, batch_size=128, epochs=160),
        source=SOURCE,
        weight_decay=(5e-4, is_matrix),
        prepare=preparation(SVHN, normalization),
        augment=functools.partial(augment_deepobs, mirror=False) if augment else None,
        train_evaluation=_train_evaluation(train_evaluation),
        dataset="svhn",
    )


def fmnist_2c2d(*, rows: int | None = None) -> Problem:
    """2C2D on Fashion-MNIST (DeepOBS).

    Args:
        rows: as in `cifar10_3c3d`.
    """
    return Problem(
        name="fmnist_2c2d",
        version=1,
        title="2C2D on Fashion-MNIST",
        description=(
            "Fashion-MNIST (50,000 training, 10,000 validation, 10,000 test images); two convolutions and two dense "
            "layers, 3,274,634 parameters; cross-entropy."
        ),
        model=cnn_2c2d,
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(load, "fashion_mnist", rows),
        training=TrainingSetting(lr=0.05, batch_size=128, epochs=100),
        source="Schneider et al. (2019), DeepOBS; the rate is ours",
        prepare=to_unit,
        dataset="fashion_mnist",
    )


def mnist_mlp(*, rows: int | None = None) -> Problem:
    """A perceptron on MNIST (DeepOBS).

    Args:
        rows: as in `cifar10_3c3d`.
    """
    return Problem(
        name="mnist_mlp",
        version=1,
        title="MLP on MNIST",
        description=(
            "MNIST (50,000 training, 10,000 validation, 10,000 test images); 784-1000-500-100-10 units with ReLUs, "
            "1,336,610 parameters; cross-entropy."
        ),
        model=deepobs_mlp,
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(load, "mnist", rows),
        training=TrainingSetting(lr=0.1, batch_size=128, epochs=100),
        source="Schneider et al. (2019), DeepOBS; the rate is ours",
        prepare=to_unit,
        dataset="mnist",
    )
