"""Augmentation of image batches, on the device that holds them.

Every image gets random numbers of its own. They are drawn on the generator's device, the CPU in a study, so that a seed
means the same images everywhere; only those few numbers travel.
"""

import torch
from torch import Tensor
from torch.nn import functional

GRAY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the brightness that the eye sees (ITU-R BT.601), as torchvision has them."""


def crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad images with zeros all around and cut a random window of the old size out of each.

    Args:
        images: [N, C, H, W], of any dtype.
        padding: rows and columns on each side; images move by at most so many pixels.
        generator: the source of the shifts, which are uniform and independent per image and axis.

    Returns:
        The moved images, [N, C, H, W].
    """
    count, _, height, width = images.shape
    shifts = torch.randint(2 * padding + 1, (2, count), generator=generator, device=generator.device)
    down, right = shifts.to(images.device)
    windows = functional.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, down, right]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2; images [N, C, H, W]."""
    mirrored = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)


def color_jitter(
    images: Tensor,
    brightness: tuple[float, float],
    saturation: tuple[float, float],
    contrast: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Change brightness, saturation and contrast of each image by random factors, in this order.

    A factor f blends the image x with another one y, f x + (1 - f) y, cut off at 0 and 1: y is black for the
    brightness, the image's gray version for the saturation, and the mean gray for the contrast. These are torchvision's
    definitions, but for the order, which it draws for each image; the fixed order is that of DeepOBS's first version.

    Args:
        images: float [N, 3, H, W], values from 0 to 1.
        brightness: least and largest factor; factors are uniform between.
        saturation: the same.
        contrast: the same.
        generator: the source of the factors.

    Returns:
        The changed images, [N, 3, H, W].
    """
    low, high = torch.tensor([brightness, saturation, contrast], device=generator.device).T
    uniform = torch.rand(len(images), 3, generator=generator, device=generator.device)
    factors = (low + (high - low) * uniform).to(images)
    bright, saturated, contrasted = factors[:, :, None, None, None].unbind(1)
    images = (images * bright).clamp(0, 1)
    gray = _gray(images)
    images = torch.lerp(gray, images, saturated).clamp(0, 1)
    gray = _gray(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(gray, images, contrasted).clamp(0, 1)


def _gray(images: Tensor) -> Tensor:
    weights = torch.tensor(GRAY, dtype=images.dtype, device=images.device)
    return torch.einsum("nchw,c->nhw", images, weights)[:, None]


def to_unit(images: Tensor) -> Tensor:
    """Images as floats from 0 to 1; bytes are divided by 255, in torch's default dtype, floats are left as they are."""
    return images if images.is_floating_point() else images.to(torch.get_default_dtype()) / 255
