"""The networks that are measured, each with a loss and made-up data of a fixed batch size.

The data can be learnt, so that steps are mostly accepted, as in training: a line search that fails costs more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from ..problems.architectures import LSTMClassifier, Transformer, all_cnn_c, autoencoder, cnn_3c3d, wrn_16_4
from ..problems.digits import build_model

Data = tuple[Tensor, Tensor]
CLUSTERS = 10
"""Classes that occur among the data."""

VOCABULARY = 65
"""Characters in the transformer's texts, about those of an English book."""


@dataclass(frozen=True)
class Network:
    """A network and what it is measured on.

    Attributes:
        title: for tables, without the batch size.
        batch_size: rows of the batch.
        model: () -> module.
        loss: (outputs, targets) -> scalar.
        data: rows -> inputs and targets, drawn from torch's default generator.
        optional: measured only where it is asked for by name.
    """

    title: str
    batch_size: int
    model: Callable[[], nn.Module]
    loss: nn.Module
    data: Callable[[int], Data]
    optional: bool = False

    def build(self, device: torch.device) -> tuple[nn.Module, Data, Data]:
        """Model, batch, and an evaluation batch of half the size; the same at every call.

        The model is in eval mode: dropout is off and batch norm uses its statistics, so that all measure one function.
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.model().to(device).eval()
            inputs, targets = (part.to(device) for part in self.data(3 * self.batch_size // 2))
        rows = self.batch_size
        return model, (inputs[:rows], targets[:rows]), (inputs[rows:], targets[rows:])


class CharacterModel(nn.Module):
    """A transformer whose logits are [N, vocabulary, T], as `nn.CrossEntropyLoss` takes them."""

    def __init__(self):
        super().__init__()
        self.transformer = Transformer(VOCABULARY, layers=3, width=128, heads=4, context=64)

    def forward(self, symbols: Tensor) -> Tensor:
        """Symbols [N, T] -> logits [N, vocabulary, T]."""
        return self.transformer(symbols).transpose(1, 2)


def _clusters(rows: int, shape: tuple[int, ...]) -> Data:
    """Inputs of unit variance around random centres, and the numbers of the centres."""
    centres, numbers = torch.randn(CLUSTERS, *shape), torch.randint(CLUSTERS, (rows,))
    return (centres[numbers] + torch.randn(rows, *shape)) / math.sqrt(2), numbers


def _classified(*shape: int) -> Callable[[int], Data]:
    return lambda rows: _clusters(rows, shape)


def _reconstructed(rows: int) -> Data:
    images = _clusters(rows, (784,))[0].sigmoid()
    return images, images


def _characters(rows: int) -> Data:
    """Texts whose characters are as unevenly frequent as words are (Zipf's law)."""
    frequencies = 1 / torch.arange(1, VOCABULARY + 1)
    text = torch.multinomial(frequencies, rows * 65, replacement=True).view(rows, 65)
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


_IMAGES = _classified(3, 32, 32)
_CROSS_ENTROPY = nn.CrossEntropyLoss()

NETWORKS = {
    "autoencoder": Network("autoencoder", 512, autoencoder, nn.BCEWithLogitsLoss(), _reconstructed),
    "3c3d": Network("3C3D", 64, cnn_3c3d, _CROSS_ENTROPY, _IMAGES),
    "3c3d-512": Network("3C3D", 512, cnn_3c3d, _CROSS_ENTROPY, _IMAGES),
    "all-cnn-c": Network("ALL-CNN-C", 32, all_cnn_c, _CROSS_ENTROPY, _IMAGES),
    "wrn-16-4": Network("WRN-16-4", 32, wrn_16_4, _CROSS_ENTROPY, _IMAGES),
    "lstm": Network("LSTM, 3 layers", 64, LSTMClassifier, _CROSS_ENTROPY, _classified(49, 1)),
    "transformer": Network("transformer, 3x128", 16, CharacterModel, _CROSS_ENTROPY, _characters),
    "digits": Network("digits CNN", 32, build_model, _CROSS_ENTROPY, _classified(1, 8, 8), optional=True),
}
"""By name. Where a dash and a number end a name, it is the batch size."""

DEFAULT = [name for name, network in NETWORKS.items() if not network.optional]


def find(name: str) -> Network:
    """Look up a network.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    close = get_close_matches(name, NETWORKS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown network {name!r}; known networks: {', '.join(NETWORKS)}.{hint}")
