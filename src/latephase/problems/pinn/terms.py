"""The terms of a physics-informed loss: mean squares of residuals, each on points of its own.

The data is a list of batches, one for each mean. A batch's inputs say by their key what is to be computed of their
points, and carry 1 / sqrt(rows) as "scale": `forward` multiplies what it computes by it, the targets are scaled alike,
and so the summed squares of all batches are the sum of the means, however they are cut.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..problem import Batch


def forward(model: nn.Module, inputs: Mapping[str, Tensor], equation: Any) -> Tensor:
    """What a batch's key says of its points, times the batch's scale: [N, k].

    Args:
        model: points [N, d] -> values [N, 1].
        inputs: "scale", and one of "interior" [N, d], "initial" [N, d], "boundary" [N, d] or, where its ends are
            compared, [N, 2, d], and "solution" [N, d], the last for the model's own values.
        equation: what holds at these points: its method of the key's name is given the model and the points.
    """
    ((key, points),) = ((key, points) for key, points in inputs.items() if key != "scale")
    with torch.enable_grad():
        values = model(points) if key == "solution" else getattr(equation, key)(model, points)
    return inputs["scale"] * values


def term(key: str, points: Tensor, targets: Tensor) -> Batch:
    """A batch of points and targets [N, k], float64, in torch's default dtype."""
    scale = 1 / math.sqrt(len(points))
    dtype = torch.get_default_dtype()
    # A scalar tensor takes no part in the choice of a dtype, so that float64 costs nothing and serves all.
    inputs = {key: points.to(dtype), "scale": torch.tensor(scale, dtype=torch.float64)}
    return inputs, (scale * targets).to(dtype)


def variable(points: Tensor) -> Tensor:
    """The points as a leaf that derivatives can be taken by."""
    return points.detach().requires_grad_()


def gradient(values: Tensor, points: Tensor) -> Tensor:
    """Derivatives [N, d] of values [N, 1] by the coordinates of points [N, d], each row's value being of its point."""
    (slopes,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    return slopes


def derivative(values: Tensor, points: Tensor, axis: int) -> Tensor:
    """The derivative [N, 1] by one of the coordinates."""
    return gradient(values, points)[:, axis : axis + 1]
