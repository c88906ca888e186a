"""The deep autoencoder of the literature on Hessian-free optimization."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from .layers import Initialize, dense

MNIST_WIDTHS = (784, 1000, 500, 250, 30)
"""The encoder for MNIST; 2,837,314 parameters with the mirrored decoder."""


def autoencoder(
    widths: Sequence[int] = MNIST_WIDTHS, initialize: Initialize = nn.init.xavier_uniform_
) -> nn.Sequential:
    """Build an autoencoder with a mirrored decoder: inputs [N, widths[0]] -> logits of the reconstruction, same shape.

    Its two modules are `encoder` and `decoder`.

    From Hinton and Salakhutdinov (2006, "Reducing the Dimensionality of Data with Neural Networks"), the problem of
    Martens (2010) and of Zhang et al. (2017): logistic units, a linear code, and logistic outputs, which
    `nn.BCEWithLogitsLoss` contains. Biases start at zero.

    Args:
        widths: of the encoder's layers, from the inputs to the code.
        initialize: fills the weights of a layer. Default: Xavier's uniform rule; `layers.sparse_` is Martens' own.
    """

    def half(widths: Sequence[int]) -> nn.Sequential:
        pairs = itertools.pairwise(widths)
        layers = [layer for pair in pairs for layer in (dense(*pair, initialize), nn.Sigmoid())]
        return nn.Sequential(*layers[:-1])

    return nn.Sequential(OrderedDict(encoder=half(widths), decoder=half(widths[::-1])))
