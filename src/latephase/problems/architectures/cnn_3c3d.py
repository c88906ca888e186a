"""3C3D: three convolutions and three dense layers, the network of DeepOBS's problem cifar10_3c3d."""

from torch import nn

from .layers import conv, dense


def cnn_3c3d(outputs: int = 10) -> nn.Sequential:
    """Build 3C3D: images [N, 3, 32, 32] -> logits [N, outputs]; 895,210 parameters for ten classes.

    From Schneider, Balles and Hennig (2019, "DeepOBS: A Deep Learning Optimizer Benchmark Suite"): Xavier's normal
    initialisation in convolutions and his uniform one in dense layers, biases zero. With L2 term 0.002 on the weights
    the expected initial loss on normalised images and ten classes is near log 10 + 1.26 = 3.56.

    Args:
        outputs: number of classes.
    """
    # Pooling behind a ReLU: padding with minus infinity, as ceil_mode does, equals padding with zeros.
    return nn.Sequential(
        *conv(3, 64, 5, same=False),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        *conv(64, 96, 3, same=False),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        *conv(96, 128, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        dense(1152, 512),
        nn.ReLU(),
        dense(512, 256),
        nn.ReLU(),
        dense(256, outputs),
    )
