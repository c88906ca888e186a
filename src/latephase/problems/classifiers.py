"""Classifiers of images from Zhang et al. (2017) and from Clarke and Hernandez-Lobato (2024)."""

import functools

from torch import Tensor, nn
from torch.nn import functional

from .architectures import LSTMClassifier, conv, dense, mlp, resnet_18, resnet_20
from .augmentation import to_unit
from .digits import shift
from .images import CIFAR10, FASHION_MNIST, SVHN, augment_shifts_and_mirrors, load, preparation
from .problem import Problem, Splits, TrainingSetting, is_matrix, is_weight, parts_of
from .scaling import standardize

ZHANG = "Zhang et al. (2017), Section 5; depth and width are ours, since the paper's are not known to us"
CLARKE = "Clarke and Hernandez-Lobato (2024), Section 4"


def _pixel_sequences(images: Tensor) -> Tensor:
    """Images [N, 1, 28, 28] -> their 7x7 averages, pixel by pixel, [N, 49, 1]."""
    return functional.avg_pool2d(to_unit(images), 4).flatten(1)[:, :, None]


def mnist_lstm(*, rows: int | None = None, width: int = 128) -> Problem:
    """Three LSTM layers on MNIST averaged down to 7x7 and read pixel by pixel (Zhang et al. 2017).

    Args:
        rows: use the first so many training images only, and a fifth as many test images. Default: all.
        width: of each layer. Default 128, our choice.
    """
    return Problem(
        name="mnist_lstm",
        version=1,
        title="LSTM on sequential MNIST",
        description=(
            "MNIST (50,000 training, 10,000 validation, 10,000 test images) averaged to 7x7 pixels, read one by one; "
            "three LSTM layers of 128 units, 332,554 parameters; cross-entropy."
        ),
        model=functools.partial(LSTMClassifier, width=width),
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(load, "mnist", rows),
        training=TrainingSetting(lr=1e-3, batch_size=128, epochs=100, optimizer="adam"),
        source=ZHANG,
        prepare=_pixel_sequences,
        dataset="mnist",
    )


def cifar10_resnet20(*, rows: int | None = None, augment: bool = True) -> Problem:
    """A residual network of 20 layers on CIFAR-10 (Zhang et al. 2017; the network and setting of He et al. 2016).

    Args:
        rows: as in `mnist_lstm`.
        augment: shift and mirror training images. Default True.
    """
    return Problem(
        name="cifar10_resnet20",
        version=1,
        title="ResNet-20 on CIFAR-10",
        description=(
            "CIFAR-10 (40,000 training, 10,000 validation, 10,000 test images), shifted and mirrored in training; a "
            "residual network of 20 layers, 269,722 parameters; cross-entropy with an L2 term of 1e-4 on the weights "
            "of convolutions and dense layer."
        ),
        model=resnet_20,
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(load, "cifar10", rows),
        training=TrainingSetting(lr=0.1, batch_size=128, epochs=200, momentum=0.9),
        source=ZHANG + "; He et al. (2016), Section 4.2",
        weight_decay=(1e-4, is_matrix),
        prepare=preparation(CIFAR10, "channel"),
        augment=augment_shifts_and_mirrors if augment else None,
        dataset="cifar10",
    )


def cifar10_resnet18(*, rows: int | None = None, augment: bool = True) -> Problem:
    """ResNet-18 on CIFAR-10 (Clarke and Hernandez-Lobato 2024).

    Args:
        rows: as in `mnist_lstm`.
        augment: shift and mirror training images. Default True.
    """
    return Problem(
        name="cifar10_resnet18",
        version=1,
        title="ResNet-18 on CIFAR-10",
        description=(
            "CIFAR-10 (45,000 training, 5,000 validation, 10,000 test images), shifted and mirrored in training; "
            "ResNet-18 in its form for large images, 11,181,642 parameters; cross-entropy."
        ),
        model=resnet_18,
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(load, "cifar10", rows, held_out=5_000),
        training=TrainingSetting(lr=1e-3, batch_size=128, epochs=72, optimizer="adam"),
        source=CLARKE,
        prepare=preparation(CIFAR10, "channel"),
        augment=augment_shifts_and_mirrors if augment else None,
        dataset="cifar10",
    )


def svhn_resnet18(*, rows: int | None = None) -> Problem:
    """ResNet-18 on SVHN (Clarke and Hernandez-Lobato 2024).

    Args:
        rows: as in `mnist_lstm`.
    """
    return Problem(
        name="svhn_resnet18",
        version=1,
        title="ResNet-18 on SVHN",
        description=(
            "SVHN without its extra images (61,047 training, 12,210 validation, 26,032 test images); ResNet-18 in its "
            "form for large images, 11,181,642 parameters; cross-entropy."
        ),
        model=resnet_18,
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(load, "svhn", rows, held_out=12_210),
        training=TrainingSetting(lr=1e-3, batch_size=256, epochs=10, optimizer="adam"),
        source=CLARKE,
        prepare=preparation(SVHN, "channel"),
        dataset="svhn",
    )


def _cnn() -> nn.Module:
    """Two 3x3 convolutions (16 and 32 channels, ReLU, max-pool) and a hidden layer of 128: 206,922 parameters."""
    return nn.Sequential(
        *conv(1, 16, 3, initialize=nn.init.xavier_uniform_),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *conv(16, 32, 3, initialize=nn.init.xavier_uniform_),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        dense(32 * 7 * 7, 128),
        nn.ReLU(),
        dense(128, 10),
    )


def fmnist_cnn(*, rows: int | None = None) -> Problem:
    """A small convolutional network on Fashion-MNIST, of a size at which two CPU cores do a late-phase study.

    Args:
        rows: as in `mnist_lstm`.
    """
    return Problem(
        name="fmnist_cnn",
        version=1,
        title="CNN on Fashion-MNIST",
        description=(
            "Fashion-MNIST (50,000 training, 10,000 validation, 10,000 test images), shifted by up to two pixels in "
            "training; two 3x3 convolutions and a hidden layer, 206,922 parameters; cross-entropy with an L2 term of "
            "5e-4 on the weights."
        ),
        model=_cnn,
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(load, "fashion_mnist", rows),
        training=TrainingSetting(lr=0.2, batch_size=64, epochs=60),
        source="ours: the network and rate of docs/late_phase.md",
        weight_decay=(5e-4, is_weight),
        prepare=preparation(FASHION_MNIST, "channel"),
        augment=shift,
        dataset="fashion_mnist",
    )


def _load_standardized(rows: int | None) -> Splits:
    splits = load("fashion_mnist", rows)
    train, valid, test = ((to_unit(images.flatten(1)), labels) for images, labels in parts_of(splits))
    return standardize(train, valid, test)


def fmnist_mlp50(*, rows: int | None = None) -> Problem:
    """A perceptron with one hidden layer of 50 units on Fashion-MNIST (Clarke and Hernandez-Lobato 2024).

    Args:
        rows: as in `mnist_lstm`.
    """
    return Problem(
        name="fmnist_mlp50",
        version=1,
        title="MLP on Fashion-MNIST",
        description=(
            "Fashion-MNIST (50,000 training, 10,000 validation, 10,000 test images), each pixel standardised; "
            "784-50-10 units with ReLUs, 39,760 parameters; cross-entropy."
        ),
        model=functools.partial(mlp, (784, 50, 10)),
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(_load_standardized, rows),
        training=TrainingSetting(lr=1e-3, batch_size=50, epochs=10, optimizer="adam"),
        source=CLARKE,
        dataset="fashion_mnist",
    )
