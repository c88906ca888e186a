"""ALL-CNN-C: convolutions only, the network of DeepOBS's problem cifar100_allcnnc."""

from torch import nn

from .layers import conv

BIAS = 0.1
"""Initial value of every bias."""


def all_cnn_c(outputs: int = 100) -> nn.Sequential:
    """Build ALL-CNN-C: images [N, 3, 32, 32] -> logits [N, outputs]; 1,387,108 parameters for a hundred classes.

    From Springenberg, Dosovitskiy, Brox and Riedmiller (2015, "Striving for Simplicity: The All Convolutional Net"), as
    Schneider, Balles and Hennig (2019, "DeepOBS") define it: Xavier's normal initialisation, biases 0.1, dropout of 0.2
    on the images and of 0.5 behind each strided convolution, and a ReLU on the last feature maps, so that no logit is
    negative. With L2 term 5e-4 on the weights the expected initial loss for a hundred classes is near
    log 100 + 0.31 = 4.91.

    Args:
        outputs: number of classes.
    """
    plan = [(3, 96, 3, 1), (96, 96, 3, 1), (96, 96, 3, 2), (96, 192, 3, 1), (192, 192, 3, 1), (192, 192, 3, 2)]
    layers: list[nn.Module] = [nn.Dropout(0.2)]
    for channels, filters, kernel_size, stride in plan:
        layers += [*conv(channels, filters, kernel_size, stride, bias=BIAS), nn.ReLU()]
        if stride == 2:
            layers.append(nn.Dropout(0.5))
    layers += [*conv(192, 192, 3, same=False, bias=BIAS), nn.ReLU()]
    layers += [*conv(192, 192, 1, bias=BIAS), nn.ReLU(), *conv(192, outputs, 1, bias=BIAS), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
