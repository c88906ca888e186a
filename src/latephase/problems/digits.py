"""The `digits` problem: a small convolutional network on 8x8 handwritten digits.

It needs no download and trains in well under a minute on one CPU thread, so it is the problem to try things on.
`digits.npz` holds the images and labels of `sklearn.datasets.load_digits`, which is the test set of E. Alpaydin and
C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository 1998, doi 10.24432/C50P49, under
CC BY 4.0.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .augmentation import crop
from .problem import Batch, Problem, Splits, TrainingSetting, is_weight

HELD_OUT_PER_CLASS = 30
SPLIT_SEED = 0
DATA = Path(__file__).with_name("digits.npz")
MAX_SHIFT = 2


def build_model() -> nn.Module:
    """Build the network: inputs [N, 1, 8, 8] -> logits [N, 10], 38,282 parameters, torch's default initialisation."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def load() -> Splits:
    """Load the 1,797 images and split them into 1,197 training, 300 validation and 300 test images.

    Pixels 0, ..., 16 are scaled to [0, 1]: inputs float32 [N, 1, 8, 8], targets int64 [N]. From each class a fixed
    pseudo-random choice of 30 images is the validation split, another 30 the test split, and the rest is the
    training split. Rows keep the order of the data set. The choice comes from numpy's `RandomState`, whose stream
    is frozen, and not from a library's splitting function, whose result may change between releases.
    """
    with np.load(DATA) as data:
        pixels, labels = data["pixels"], data["labels"]
    inputs = torch.from_numpy(pixels / 16.0).to(torch.float32).reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).to(torch.int64)
    random = np.random.RandomState(SPLIT_SEED)
    train, valid, test = [], [], []
    for digit in range(10):
        rows = random.permutation(np.flatnonzero(labels == digit))
        chosen_valid, chosen_test, rest = np.split(rows, [HELD_OUT_PER_CLASS, 2 * HELD_OUT_PER_CLASS])
        valid.append(chosen_valid)
        test.append(chosen_test)
        train.append(rest)
    train, valid, test = (torch.from_numpy(np.sort(np.concatenate(part))) for part in (train, valid, test))
    return Splits(
        train=(inputs[train], targets[train]),
        valid=(inputs[valid], targets[valid]),
        test=(inputs[test], targets[test]),
    )


def shift(images: Tensor, labels: Tensor, generator: torch.Generator) -> Batch:
    """Move every image by -2, ..., 2 pixels along each axis, the gap filled with zeros (the background).

    Args:
        images: [N, C, H, W].
        labels: [N], returned as they are.
        generator: The source of the shifts, which are uniform and independent per image and axis.

    Returns:
        The moved images, [N, C, H, W], and the labels.
    """
    return crop(images, MAX_SHIFT, generator), labels


def digits() -> Problem:
    """A small convolutional network on scikit-learn's digits; nothing needs to be downloaded."""
    return Problem(
        name="digits",
        version=1,
        title="CNN on digits",
        description=(
            "The 8x8 handwritten digits of scikit-learn (1,197 training, 300 validation, 300 test images), shifted by "
            "up to two pixels in training; two 3x3 convolutions and one hidden layer, 38,282 parameters; cross-entropy "
            "with an L2 term of 5e-4 on the weights."
        ),
        model=build_model,
        loss=nn.CrossEntropyLoss(),
        load=load,
        training=TrainingSetting(lr=0.2, batch_size=32, epochs=400),
        source="ours: the smallest problem with a late phase",
        weight_decay=(5e-4, is_weight),
        augment=shift,
    )
