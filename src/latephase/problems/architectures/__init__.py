"""Networks of the literature as plain modules, freshly initialised from torch's default generator."""

from .all_cnn_c import all_cnn_c
from .autoencoder import autoencoder
from .cnn_3c3d import cnn_3c3d
from .lstm import LSTMClassifier
from .transformer import Transformer
from .wide_resnet import wide_resnet, wrn_16_4

__all__ = ["LSTMClassifier", "Transformer", "all_cnn_c", "autoencoder", "cnn_3c3d", "wide_resnet", "wrn_16_4"]
