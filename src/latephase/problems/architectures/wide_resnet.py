"""Wide residual networks, WRN-16-4 among them: the network of DeepOBS's problem svhn_wrn164."""

import functools

from torch import Tensor, nn

from .layers import conv, dense

_conv = functools.partial(conv, bias=None, initialize=nn.init.xavier_uniform_)


class Block(nn.Module):
    """A pre-activation residual block: batch norm, ReLU and convolution, twice, and the shortcut.

    Where the shape changes the shortcut is a 1x1 convolution of the first activation, otherwise the input itself.

    Args:
        channels: of the input.
        filters: channels of the output.
        stride: of the first convolution.
        bn_momentum: weight of a new batch in batch norm's running statistics.
    """

    def __init__(self, channels: int, filters: int, stride: int, bn_momentum: float):
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(channels, momentum=bn_momentum), nn.ReLU())
        self.residual = nn.Sequential(
            *_conv(channels, filters, 3, stride),
            nn.BatchNorm2d(filters, momentum=bn_momentum),
            nn.ReLU(),
            *_conv(filters, filters, 3),
        )
        same_shape = stride == 1 and channels == filters
        self.shortcut = None if same_shape else nn.Sequential(*_conv(channels, filters, 1, stride))

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps [N, channels, H, W] -> [N, filters, H / stride, W / stride]."""
        active = self.activate(images)
        return self.residual(active) + (images if self.shortcut is None else self.shortcut(active))


def wide_resnet(blocks: int, widening: int, outputs: int = 10, bn_momentum: float = 0.9) -> nn.Sequential:
    """Build WRN-depth-widening: images [N, 3, 32, 32] -> logits [N, outputs].

    From Zagoruyko and Komodakis (2016, "Wide Residual Networks"), as Schneider, Balles and Hennig (2019, "DeepOBS")
    define it: no dropout, no bias in convolutions, Xavier's uniform initialisation. Their L2 term is on the weights of
    convolutions and of the dense layer only: the parameters with more than one dimension.

    Args:
        blocks: residual blocks in each of the three groups; the depth is 4 + 6 * blocks.
        widening: factor on the 16, 32 and 64 filters.
        outputs: number of classes.
        bn_momentum: weight of a new batch in batch norm's running statistics. DeepOBS's PyTorch version has 0.9, which
            leaves statistics of little more than the last batch; its TensorFlow version means what torch calls 0.1.
    """
    layers, channels = _conv(3, 16, 3), 16
    for filters, stride in ((16 * widening, 1), (32 * widening, 2), (64 * widening, 2)):
        for position in range(blocks):
            layers.append(Block(channels, filters, 1 if position else stride, bn_momentum))
            channels = filters
    layers += [nn.BatchNorm2d(channels, momentum=bn_momentum), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, dense(channels, outputs))


def wrn_16_4(outputs: int = 10, bn_momentum: float = 0.9) -> nn.Sequential:
    """Build WRN-16-4, 2,748,890 parameters for ten classes; see `wide_resnet`."""
    return wide_resnet(2, 4, outputs, bn_momentum)
