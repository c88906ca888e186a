"""What the problems on published images share: fixed splits, preparation, and the augmentation of the papers."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from . import data
from .augmentation import color_jitter, crop, flip, to_unit
from .problem import Batch, Problem, Splits, is_batch, parts_of

SPLIT_SEED = 0

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, pixels from 0 to 1."""

CIFAR10: Statistics = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)
CIFAR100: Statistics = (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)
SVHN: Statistics = (0.4376821, 0.4437697, 0.47280442), (0.19803012, 0.20101562, 0.19703614)

FASHION_MNIST: Statistics = (0.286,), (0.353,)

PUBLISHED = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257}
"""Images of the published training files."""

HELD_OUT = {"mnist": 10_000, "fashion_mnist": 10_000, "cifar10": 10_000, "cifar100": 10_000, "svhn": 26_032}
"""How many of them are the validation split (DeepOBS)."""


def split_rows(count: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Training and validation rows: a fixed pseudo-random choice, each in the order of the file.

    The choice comes from numpy's `RandomState`, whose stream is frozen. DeepOBS draws it anew with every seed; here it
    belongs to the problem.
    """
    order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(count))
    return order[held_out:].sort().values, order[:held_out].sort().values


def load(dataset: str, rows: int | None = None, held_out: int | None = None) -> Splits:
    """Read labelled images and split off the validation rows.

    Args:
        dataset: its name.
        rows: use the first so many training images only, and a fifth as many test images, for a smaller machine.
            Default: all.
        held_out: validation rows among all training images; with `rows` the same share. Default: `HELD_OUT`.

    Raises:
        ValueError: more rows than there are, or so few that a split would be empty.
        DataError: files are missing and cannot be downloaded, or are not as published.
    """
    if rows is not None and not 10 <= rows <= PUBLISHED[dataset]:
        raise ValueError(f"rows must be from 10 to {PUBLISHED[dataset]}, the images there are; got {rows!r}")
    some = {"rows": rows} if dataset.startswith("cifar") else {}
    images = getattr(data, dataset)(**some)
    count = rows or len(images.train_labels)
    share = HELD_OUT[dataset] if held_out is None else held_out
    train, valid = split_rows(count, max(1, share * count // PUBLISHED[dataset]))
    test = slice(None if rows is None else rows // 5)
    return Splits(
        train=(images.train_images[train], images.train_labels[train]),
        valid=(images.train_images[valid], images.train_labels[valid]),
        test=(images.test_images[test], images.test_labels[test]),
    )


def normalize(images: Tensor, statistics: Statistics) -> Tensor:
    """Images [N, C, H, W], bytes or from 0 to 1, with mean 0 and standard deviation 1 in each channel of the data."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in statistics)
    return (to_unit(images) - mean) / std


def standardize_each(images: Tensor) -> Tensor:
    """Each image [C, H, W] with mean 0 and standard deviation 1 of its own, as TensorFlow's per_image_standardization.

    The standard deviation counts as at least 1 / sqrt(entries), on the scale of bytes.
    """
    pixels = 255 * to_unit(images)
    deviation, mean = torch.std_mean(pixels, dim=(1, 2, 3), correction=0, keepdim=True)
    return (pixels - mean) / deviation.clamp(min=pixels[0].numel() ** -0.5)


Normalization = Literal["channel", "image"]


def preparation(statistics: Statistics, normalization: Normalization) -> Callable[[Any], Any]:
    """How bytes become inputs: normalised by channel over the data set, or each image by itself."""
    if normalization == "image":
        return standardize_each
    if normalization == "channel":
        return functools.partial(normalize, statistics=statistics)
    raise ValueError(f"normalization must be 'channel' or 'image', got {normalization!r}")


def augment_deepobs(images: Tensor, labels: Tensor, generator: torch.Generator, mirror: bool = True) -> Batch:
    """DeepOBS's augmentation: windows shifted by up to 2 pixels, mirroring, and changed colours."""
    images = crop(images, 2, generator)
    if mirror:
        images = flip(images, generator)
    delta = 63 / 255
    jittered = color_jitter(to_unit(images), (1 - delta, 1 + delta), (0.5, 1.5), (0.2, 1.8), generator)
    return jittered, labels


def augment_shifts_and_mirrors(images: Tensor, labels: Tensor, generator: torch.Generator) -> Batch:
    """Windows shifted by up to 4 pixels, and mirroring (He et al. 2016, Section 4.2)."""
    return flip(crop(images, 4, generator), generator), labels


TRAIN_EVALUATION_ROWS = 10_000


def deepobs_train_evaluation(problem: Problem, splits: Splits, generator: torch.Generator) -> Batch:
    """The rows on which DeepOBS's PyTorch version measures the training loss: drawn anew for each measurement.

    They are 10,000 rows of training and validation split together, and augmented; so the measured loss jumps, and it is
    not the loss of the data that was trained on.
    """
    (images, labels), (more_images, more_labels), _ = parts_of(splits)
    images, labels = torch.cat([images, more_images]), torch.cat([labels, more_labels])
    rows = torch.randperm(len(labels), generator=generator)[:TRAIN_EVALUATION_ROWS]
    batch = problem.batch((images, labels), rows, generator)
    assert is_batch(batch)
    return batch
