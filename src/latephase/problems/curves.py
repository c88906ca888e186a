"""Images of smooth curves through three random points, after the description of the CURVES data."""

import torch
from torch import Tensor
from torch.nn import functional

from .problem import Splits

SIZE = 28
"""Rows and columns of an image."""
COUNTS = (18_000, 2_000, 10_000)
"""Images of the training, validation and test split."""
INK_POINTS = 60
"""Places along a curve at which ink is left."""
INSIDE = (4.0, 23.0)
"""Range of both coordinates of the three points, in pixels; curves go beyond it by at most an eighth of its width."""


def curves_splits() -> Splits:
    """Draw the images: inputs and targets are the same uint8 [N, 784], 0 to 255; 18,000, 2,000 and 10,000 of them.

    Hinton and Salakhutdinov (2006, "Reducing the Dimensionality of Data with Neural Networks") describe CURVES as
    synthetic images of 28 x 28 pixels, of curves through three random points in two dimensions, so that six numbers say
    everything about an image. The published file, of 20,000 training and 10,000 test images, is not this one: these
    curves are drawn anew after that description, so that errors do not compare exactly with published ones. Of as many
    training images, 2,000 are the validation split.
    """
    return Splits(*(_pair(draw_curves(count, _generator(seed))) for seed, count in enumerate(COUNTS)))


def draw_curves(count: int, generator: torch.Generator) -> Tensor:
    """Draw images of curves.

    The curve is the parabola p(s), 0 <= s <= 1, with the three points at s = 0, 1/2 and 1. Ink, as much as the curve is
    long, is left at 60 places of it and shared by the four nearest pixels, smoothed by (1, 2, 1) / 4 along both axes,
    and cut off at full intensity, which a straight line reaches.

    Args:
        count: number of images, N.
        generator: source of the points, uniform over a square that leaves a margin of four pixels; on the CPU.

    Returns:
        Images uint8 [N, 784].
    """
    low, high = INSIDE
    points = low + (high - low) * torch.rand(count, 3, 2, generator=generator)
    return torch.cat([_ink(part) for part in points.split(5000)])


def _ink(points: Tensor) -> Tensor:
    """Images uint8 [N, 784] of the curves through points [N, 3, 2]."""
    s = (torch.arange(INK_POINTS, dtype=points.dtype) + 0.5) / INK_POINTS
    weights = torch.stack([(2 * s - 1) * (s - 1), 4 * s * (1 - s), s * (2 * s - 1)])
    slopes = torch.stack([4 * s - 3, 4 - 8 * s, 4 * s - 1])
    places = torch.einsum("ps,npc->nsc", weights, points)
    lengths = torch.einsum("ps,npc->nsc", slopes, points).norm(dim=2) / INK_POINTS
    corner = places.floor()
    (across, down), (x, y) = (places - corner).unbind(2), corner.to(torch.int64).unbind(2)
    images = torch.zeros(len(points), SIZE * SIZE, dtype=points.dtype)
    for i, share_x in enumerate((1 - across, across)):
        for j, share_y in enumerate((1 - down, down)):
            images.scatter_add_(1, (y + j) * SIZE + x + i, lengths * share_x * share_y)
    smoothed = functional.pad(images.view(-1, 1, SIZE, SIZE), (1, 1, 1, 1))
    for _ in range(2):
        smoothed = functional.avg_pool2d(smoothed, kernel_size=2, stride=1)
    # A horizontal line leaves one unit per pixel, of which smoothing keeps a half.
    return (smoothed * 2).clamp(max=1.0).mul(255).round().to(torch.uint8).flatten(1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _pair(images: Tensor) -> tuple[Tensor, Tensor]:
    return images, images
