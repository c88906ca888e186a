"""2C2D: two convolutions and two dense layers, the network of DeepOBS's problem fmnist_2c2d."""

import functools

from torch import nn

from .layers import conv, dense, truncated_normal_

_initialize = functools.partial(truncated_normal_, std=0.05)


def cnn_2c2d(outputs: int = 10) -> nn.Sequential:
    """Build 2C2D: images [N, 1, 28, 28] -> logits [N, outputs]; 3,274,634 parameters for ten classes.

    From Schneider, Balles and Hennig (2019, "DeepOBS: A Deep Learning Optimizer Benchmark Suite"): weights truncated
    normal of scale 0.05, biases 0.05.

    Args:
        outputs: number of classes.
    """
    return nn.Sequential(
        *conv(1, 32, 5, bias=0.05, initialize=_initialize),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        *conv(32, 64, 5, bias=0.05, initialize=_initialize),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        dense(3136, 1024, _initialize, bias=0.05),
        nn.ReLU(),
        dense(1024, outputs, _initialize, bias=0.05),
    )
