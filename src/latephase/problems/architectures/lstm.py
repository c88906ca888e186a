"""A classifier of sequences with long short-term memory."""

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
        self.lstm = nn.LSTM(features, width, layers, batch_first=True)
        self.classify = nn.Linear(width, outputs)

    def forward(self, sequences: Tensor) -> Tensor:
        """Logits [N, outputs]."""
        hidden, _ = self.lstm(sequences)
        return self.classify(hidden[:, -1])
