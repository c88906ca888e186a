"""Points of a box and of its faces, spread evenly: Sobol's sequence, scrambled anew by each draw from a generator."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine


def inside(box: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points [count, d], each of which is uniform in a box [2, d] of lowest and highest coordinates; float64.

    Evenly spread points ask more of a network than as many independent ones, which leave gaps.

    Args:
        box: float64, on the CPU.
        count: how many points.
        generator: source of the scrambling.
    """
    lowest, highest = box
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    engine = SobolEngine(box.shape[1], scramble=True, seed=seed)
    engine.fast_forward(1)  # torch makes the first point in its default dtype
    return lowest + (highest - lowest) * engine.draw(count, dtype=torch.float64)


def on_faces(box: Tensor, count: int, generator: torch.Generator, axes: Sequence[int]) -> Tensor:
    """Points [count, d] on the box's faces, as many on each: of each of some axes the lower face and the upper one.

    Each face has a sequence of its own: every other point of one lies in the same half of the box, so that points dealt
    out to the faces in turn would leave half of each face empty.
    """
    faces = [(axis, side) for axis in axes for side in (0, 1)]
    found = []
    for place, (axis, side) in enumerate(faces[:count]):
        points = inside(box, (count - place + len(faces) - 1) // len(faces), generator)
        points[:, axis] = box[side, axis]
        found.append(points)
    return torch.cat(found)


def at_both_ends(box: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Pairs [count, 2, d] of points on the lower and the upper face of the first axis, otherwise the same."""
    pairs = inside(box, count, generator)[:, None].repeat(1, 2, 1)
    pairs[:, :, 0] = box[:, 0]
    return pairs


def grid(box: Tensor, sizes: Sequence[int]) -> Tensor:
    """All points [product of sizes, d] of a grid with the box's edges; the first coordinate runs fastest."""
    sides = zip(*box.tolist(), sizes, strict=True)
    axes = [torch.linspace(lowest, highest, size, dtype=torch.float64) for lowest, highest, size in sides]
    return torch.cartesian_prod(*reversed(axes)).flip(1)
