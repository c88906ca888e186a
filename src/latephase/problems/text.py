"""Language models on the characters of Shakespeare's plays."""

import functools

import torch
from torch import nn

from . import data
from .architectures import CharLSTM, Transformer
from .problem import Batch, Problem, Splits, TrainingSetting

SYMBOLS = 65
"""Distinct characters of the text, numbered in the order of their codes."""

SHARES = (0.9, 0.05)
"""Of the text, from its beginning, for training and for validation; the rest is the test split."""


def _load(length: int) -> Splits:
    """Windows of symbols without overlap: inputs [N, length], uint8, and the symbol that follows each, int64."""
    text = torch.frombuffer(bytearray(data.tiny_shakespeare(), "ascii"), dtype=torch.uint8)
    symbols = torch.unique(text, return_inverse=True)[1].to(torch.uint8)
    first, second = (round(len(symbols) * share) for share in (SHARES[0], sum(SHARES)))
    return Splits(*(_windows(part, length) for part in symbols.tensor_split((first, second))))


def _windows(symbols: torch.Tensor, length: int) -> Batch:
    count = (len(symbols) - 1) // length
    shifted = (symbols[start : start + count * length].reshape(count, length) for start in (0, 1))
    return next(shifted), next(shifted).long()


def shakespeare_lstm(*, width: int = 128, layers: int = 2, length: int = 50, dropout: float = 0.2) -> Problem:
    """LSTM on the characters of Shakespeare's plays.

    Clarke and Hernandez-Lobato train 3 layers of 1,150 units on the words of the Penn Treebank; this is the same kind
    of model on free text, at the size of DeepOBS's tolstoi_char_rnn. Every window starts from hidden states of zero.

    Args:
        width: of embedding and hidden states. Default 128, DeepOBS's.
        layers: of LSTM. Default 2, DeepOBS's.
        length: of the windows. Default 50, DeepOBS's.
        dropout: probability, between the layers. Default 0.2, DeepOBS's.
    """
    return Problem(
        name="shakespeare_lstm",
        version=1,
        title="LSTM on Shakespeare",
        description=(
            "Shakespeare's plays in characters (1,003,854 for training, 55,770 each for validation and test), in "
            "windows of 50; two LSTM layers of 128 units with dropout, 280,897 parameters; cross-entropy."
        ),
        model=functools.partial(CharLSTM, SYMBOLS, width, layers, dropout),
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(_load, length),
        training=TrainingSetting(lr=1e-3, batch_size=50, epochs=200, optimizer="adam"),
        source="Clarke and Hernandez-Lobato (2024), Section 4; Schneider et al. (2019), DeepOBS, tolstoi_char_rnn",
        prepare=torch.Tensor.int,
        dataset="tiny_shakespeare",
    )


class CharTransformer(Transformer):
    """The transformer with its logits [N, vocabulary, T] as `nn.CrossEntropyLoss` takes them."""

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        """Symbols [N, T] -> logits [N, vocabulary, T]."""
        return super().forward(symbols).transpose(1, 2)


def shakespeare_gpt(*, width: int = 128, layers: int = 4, heads: int = 4, length: int = 64) -> Problem:
    """A small GPT on the characters of Shakespeare's plays.

    Clarke and Hernandez-Lobato train GPT-2 from scratch on the words of the Penn Treebank; this is the same kind of
    model at the size that nanoGPT (Karpathy 2022) proposes for a CPU, without dropout.

    Args:
        width: of the features. Default 128.
        layers: of attention and perceptron. Default 4.
        heads: of attention. Default 4.
        length: of the windows. Default 64.
    """
    return Problem(
        name="shakespeare_gpt",
        version=1,
        title="GPT on Shakespeare",
        description=(
            "Shakespeare's plays in characters (1,003,854 for training, 55,770 each for validation and test), in "
            "windows of 64; a transformer of 4 layers and width 128, 818,176 parameters; cross-entropy."
        ),
        model=functools.partial(CharTransformer, SYMBOLS, layers, width, heads, length),
        loss=nn.CrossEntropyLoss(),
        load=functools.partial(_load, length),
        training=TrainingSetting(lr=1e-3, batch_size=12, epochs=10, optimizer="adam"),
        source="Clarke and Hernandez-Lobato (2024), Section 4; nanoGPT's setting for a CPU",
        prepare=torch.Tensor.int,
        dataset="tiny_shakespeare",
    )
