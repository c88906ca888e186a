"""Networks with long short-term memory."""

from torch import Tensor, nn


class LSTMClassifier(nn.Module):
    """LSTM layers and a dense layer on the last hidden state: sequences [N, T, features] -> logits [N, outputs].

    With three layers it is the network of Zhang et al. (2017, "Block-diagonal Hessian-free optimization for training
    neural networks") for sequential MNIST, images averaged down to 7x7 and read pixel by pixel, so that T is 49. The
    paper's width is not known to us. torch's default initialisation.

    Args:
        features: numbers at each place of a sequence.
        width: of each hidden state.
        layers: of LSTM.
        outputs: number of classes.
    """

    def __init__(self, features: int = 1, width: int = 128, layers: int = 3, outputs: int = 10):
        super().__init__()
        widths = [features] + [width] * (layers - 1)
        # Modules of their own, so that each layer can be a block of the curvature.
        self.layers = nn.ModuleList(nn.LSTM(inputs, width, batch_first=True) for inputs in widths)
        self.classify = nn.Linear(width, outputs)

    def forward(self, sequences: Tensor) -> Tensor:
        """Logits [N, outputs]."""
        for layer in self.layers:
            sequences, _ = layer(sequences)
        return self.classify(sequences[:, -1])


class CharLSTM(nn.Module):
    """A language model: symbols int64 [N, T] -> logits [N, vocabulary, T] of the symbol that follows each place.

    Embedding, LSTM layers with dropout between them, and a dense layer at every place: the network of DeepOBS's problem
    tolstoi_char_rnn (Schneider, Balles and Hennig 2019), which has 285,523 parameters for 83 symbols. torch's default
    initialisation, as there. Every sequence starts from hidden states of zero.

    Args:
        vocabulary: number of symbols.
        width: of embedding and hidden states.
        layers: of LSTM.
        dropout: probability, between the layers.
    """

    def __init__(self, vocabulary: int, width: int = 128, layers: int = 2, dropout: float = 0.2):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout)
        self.logits = nn.Linear(width, vocabulary)

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits [N, vocabulary, T], as `nn.CrossEntropyLoss` takes them."""
        hidden, _ = self.lstm(self.embedding(symbols))
        return self.logits(hidden).transpose(1, 2)
