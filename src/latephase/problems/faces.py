"""Patches of faces, turned and scaled, after the description of the FACES data."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from .problem import Splits

SIZE = 25
"""Rows and columns of a patch."""
PATCHES = 414
"""Patches of each image."""
IMAGES = 10
"""Images of each person."""
PEOPLE = (25, 5, 10)
"""People of the training, validation and test split, in the order of the data set."""
SCALES = (1.4, 1.8)
STEP = 2
"""Every second pixel of the enlarged image is taken."""


def faces_splits(faces: Tensor) -> Splits:
    """Cut the patches: inputs and targets are the same float32 [N, 625]; 103,500, 20,700 and 41,400 of them.

    Hinton and Salakhutdinov (2006, "Reducing the Dimensionality of Data with Neural Networks", supporting material)
    made 165,600 patches of 25 x 25 pixels from the Olivetti faces by turning them (-90 to 90 degrees), scaling (1.4 to
    1.8), cropping and subsampling; Martens (2010) trained on those of the first 25 people and tested on the last ten.
    Here the crop is 50 pixels wide, of which every second is taken, and lies anywhere within the image. Then the mean
    of each pixel is taken away and all is scaled by one number to an average variance of 1, both those of the training
    split. These are not the published patches, so that errors do not compare exactly with published ones.

    Args:
        faces: uint8 [400, 64, 64], ten images of each of forty people, in order.

    Raises:
        ValueError: another shape.
    """
    count = IMAGES * sum(PEOPLE)
    if faces.dim() != 3 or len(faces) != count or faces.shape[1] != faces.shape[2]:
        raise ValueError(f"faces must be {count} square images [{count}, H, H], got shape {list(faces.shape)}")
    generator = torch.Generator().manual_seed(0)
    parts = faces.split([IMAGES * people for people in PEOPLE])
    train, valid, test = (cut_patches(part, PATCHES, generator) for part in parts)
    mean = train.mean(0)
    for patches in (train, valid, test):
        patches -= mean
    scale = 1 / math.sqrt(sum(float(rows.square().sum()) for rows in train.split(10_000)) / train.numel())
    for patches in (train, valid, test):
        patches *= scale
    return Splits((train, train), (valid, valid), (test, test))


def cut_patches(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Cut turned and scaled square patches that lie within the images.

    Args:
        images: [N, H, H], uint8, H being at least 52.
        count: patches of each image.
        generator: source of angles, scales and places, all uniform; on the CPU.

    Returns:
        Patches float32 [N * count, 625], those of an image one after another, with values from 0 to 255.
    """
    angle, scale, x, y = torch.rand(4, len(images) * count, generator=generator)
    angle = (angle - 0.5) * math.pi
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * scale
    cosine, sine = angle.cos(), angle.sin()
    # From the patch's middle to its outermost pixels, and how far the middle may be from the image's, in its pixels.
    half = (SIZE - 1) / 2 * STEP / scale
    middle = (images.shape[1] - 1) / 2
    room = middle - half * (cosine.abs() + sine.abs())
    patches = torch.empty(len(images), count, SIZE * SIZE)
    # In units of grid_sample, where -1 and 1 are the outermost pixels: rows [[a, b, c], [d, e, f]] of each patch's map.
    turn = torch.stack(
        [cosine * half, -sine * half, (2 * x - 1) * room, sine * half, cosine * half, (2 * y - 1) * room]
    )
    turn = (turn / middle).T.view(len(images), count, 2, 3)
    for patch, image, maps in zip(patches, images, turn, strict=True):
        grid = functional.affine_grid(maps, [count, 1, SIZE, SIZE], align_corners=True)
        one = image.to(torch.float32)[None, None]
        sampled = functional.grid_sample(one, grid.view(1, count * SIZE, SIZE, 2), align_corners=True)
        patch.copy_(sampled.view(count, SIZE * SIZE))
    return patches.flatten(0, 1)
