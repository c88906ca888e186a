"""Networks of the literature as plain modules, freshly initialised from torch's default generator."""

from .all_cnn_c import all_cnn_c
from .autoencoder import MNIST_WIDTHS as MNIST_WIDTHS
from .autoencoder import autoencoder
from .cnn_2c2d import cnn_2c2d
from .cnn_3c3d import cnn_3c3d
from .layers import Initialize as Initialize
from .layers import conv as conv
from .layers import dense as dense
from .layers import sparse_ as sparse_
from .lstm import CharLSTM, LSTMClassifier
from .mlp import deepobs_mlp, mlp
from .recurrent import Recurrent
from .resnet import resnet_18, resnet_20
from .transformer import Transformer
from .wide_resnet import wide_resnet, wrn_16_4

__all__ = [
    "CharLSTM",
    "LSTMClassifier",
    "Recurrent",
    "Transformer",
    "all_cnn_c",
    "autoencoder",
    "cnn_2c2d",
    "cnn_3c3d",
    "deepobs_mlp",
    "mlp",
    "resnet_18",
    "resnet_20",
    "wide_resnet",
    "wrn_16_4",
]
