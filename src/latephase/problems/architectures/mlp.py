"""Multilayer perceptrons with ReLUs."""

import functools
import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from .layers import Initialize, dense, truncated_normal_


def fan_in_normal_(weight: Tensor) -> Tensor:
    """Fill a layer's weights [outputs, inputs, ...] with truncated normal numbers of scale 1 / sqrt(fan-in)."""
    return truncated_normal_(weight, 1 / math.sqrt(weight[0].numel()))


def mlp(widths: Sequence[int], initialize: Initialize = fan_in_normal_) -> nn.Sequential:
    """Build a perceptron: inputs [N, ...] of widths[0] numbers each -> outputs [N, widths[-1]]; biases start at zero.

    Args:
        widths: of inputs, hidden layers and outputs.
        initialize: fills the weights of a layer. Default: truncated normal of scale 1 / sqrt(inputs), as in Clarke and
            Hernandez-Lobato (2024).
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [dense(inputs, outputs, initialize), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def deepobs_mlp() -> nn.Sequential:
    """Build DeepOBS's perceptron 784-1000-500-100-10, 1,336,610 parameters; truncated normal weights of scale 0.03."""
    return mlp((784, 1000, 500, 100, 10), functools.partial(truncated_normal_, std=0.03))
