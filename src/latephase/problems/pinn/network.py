"""The networks of the physics-informed problems."""

import itertools
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


def tanh_layers(sizes: Sequence[int]) -> nn.Sequential:
    """Dense layers of these sizes with tanh between them; Xavier's normal weights, biases zero."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Conditions(Protocol):
    """What an equation says of a network that meets its conditions by construction."""

    def features(self, points: Tensor) -> Tensor:
        """What the first layer is given [N, k] for points [N, d]."""
        ...

    def constrained(self, points: Tensor, values: Tensor) -> Tensor:
        """A function [N, 1] that meets the conditions whatever the network's values [N, 1] at the points are."""
        ...


class Constrained(nn.Module):
    """A network that meets an equation's initial and boundary conditions whatever its weights are.

    Args:
        layers: features [N, k] -> values [N, 1].
        conditions: gives the features, and the function that is made of the values.
    """

    def __init__(self, layers: nn.Module, conditions: Conditions):
        super().__init__()
        self.layers = layers
        self.conditions = conditions

    def forward(self, points: Tensor) -> Tensor:
        """Points [N, d] -> values [N, 1]."""
        return self.conditions.constrained(points, self.layers(self.conditions.features(points)))
