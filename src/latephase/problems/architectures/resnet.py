"""Residual networks of He et al. (2016, "Deep Residual Learning for Image Recognition")."""

import functools
from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from .layers import Initialize, SamePadding, conv, dense
from .mlp import fan_in_normal_

_he_normal = functools.partial(nn.init.kaiming_normal_, nonlinearity="relu")


class WithoutParameters(nn.Module):
    """He et al.'s shortcut A: every `stride`-th row and column, zeros for the channels that the input lacks."""

    def __init__(self, missing: int, stride: int):
        super().__init__()
        self.missing, self.stride = missing, stride

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps [N, C, H, W] -> [N, C + missing, H / stride, W / stride]."""
        before = self.missing // 2
        return functional.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.missing - before))


class Block(nn.Module):
    """Convolution, batch norm, ReLU, convolution, batch norm; the shortcut is added in front of the last ReLU.

    Args:
        channels: of the input.
        filters: channels of the output.
        stride: of the first convolution.
        projection: whether a shortcut between different shapes is a 1x1 convolution and batch norm (shortcut B), or has
            no parameters (shortcut A).
        initialize: fills the convolutions' weights.
    """

    def __init__(self, channels: int, filters: int, stride: int, projection: bool, initialize: Initialize):
        super().__init__()
        layer = functools.partial(conv, bias=None, initialize=initialize)
        self.residual = nn.Sequential(
            *layer(channels, filters, 3, stride),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            *layer(filters, filters, 3),
            nn.BatchNorm2d(filters),
        )
        if channels == filters and stride == 1:
            self.shortcut: nn.Module = nn.Identity()
        elif projection:
            self.shortcut = nn.Sequential(*layer(channels, filters, 1, stride), nn.BatchNorm2d(filters))
        else:
            self.shortcut = WithoutParameters(filters - channels, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps [N, channels, H, W] -> [N, filters, H / stride, W / stride]."""
        return functional.relu(self.residual(images) + self.shortcut(images))


def _groups(
    channels: int, widths: tuple[int, ...], blocks: int, projection: bool, initialize: Initialize
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for group, filters in enumerate(widths):
        for position in range(blocks):
            stride = 2 if group and not position else 1
            layers.append(Block(channels, filters, stride, projection, initialize))
            channels = filters
    return layers


def resnet_20(outputs: int = 10) -> nn.Sequential:
    """Build the 20-layer network for CIFAR: images [N, 3, 32, 32] -> logits [N, outputs]; 269,722 parameters for ten.

    He et al., Section 4.2: three groups of three blocks with 16, 32 and 64 filters, shortcuts without parameters,
    convolutions by He's normal rule (fan-in) without biases. The dense layer is Xavier's uniform, its biases zero. Its
    modules are `stem`, the groups `stage1` to `stage3`, and `head`.

    Args:
        outputs: number of classes.
    """
    stem = nn.Sequential(*conv(3, 16, 3, bias=None, initialize=_he_normal), nn.BatchNorm2d(16), nn.ReLU())
    groups = _groups(16, (16, 32, 64), 3, False, _he_normal)
    stages = {f"stage{i + 1}": nn.Sequential(*groups[3 * i : 3 * i + 3]) for i in range(3)}
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(64, outputs))
    return nn.Sequential(OrderedDict(stem=stem, **stages, head=head))


def resnet_18(outputs: int = 10) -> nn.Sequential:
    """Build ResNet-18: images [N, 3, H, W] -> logits [N, outputs]; 11,181,642 parameters for ten classes.

    The network of Clarke and Hernandez-Lobato (2024) on 32x32 images, which is the one made for larger images as the
    library Haiku has it: a 7x7 convolution and a pooling, each of stride 2, come first, so that the last feature maps
    have one pixel; weights of convolutions truncated normal of scale 1 / sqrt(fan-in); the last layer starts at zero.

    Args:
        outputs: number of classes.
    """
    return nn.Sequential(
        *conv(3, 64, 7, 2, bias=None, initialize=fan_in_normal_),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        SamePadding(3, 2),  # zeros are as good as minus infinity behind a ReLU
        nn.MaxPool2d(3, 2),
        *_groups(64, (64, 128, 256, 512), 2, True, fan_in_normal_),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        dense(512, outputs, nn.init.zeros_),
    )
