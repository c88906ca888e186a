"""Networks, small and of every kind, and losses that trials draw from."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latephase import WithHidden

FEATURES, CLASSES = 4, 3


class Recurrent(nn.Module):
    """Over the features as if they were time steps; hands its pre-activations on, for structural damping."""

    def __init__(self):
        super().__init__()
        self.input, self.hidden, self.output = nn.Linear(1, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, CLASSES)

    def forward(self, inputs: Tensor) -> WithHidden:
        """Outputs [rows, 3] of inputs [rows, 4], with the pre-activations."""
        state, hidden = inputs.new_zeros(len(inputs), 3), []
        for column in inputs.unbind(dim=1):
            hidden.append(self.input(column[:, None]) + self.hidden(state))
            state = torch.tanh(hidden[-1])
        return WithHidden(self.output(state), tuple(hidden), "tanh")


class Attention(nn.Module):
    """A transformer layer over the features."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.output = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [rows, 3] of inputs [rows, 4]."""
        return self.output(self.layer(self.embed(inputs[..., None])).mean(1))


class Lstm(nn.Module):
    """Over the features as if they were time steps, by torch's own layer."""

    def __init__(self):
        super().__init__()
        self.lstm, self.output = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [rows, 3] of inputs [rows, 4]."""
        return self.output(self.lstm(inputs[..., None])[0][:, -1])


class Tied(nn.Module):
    """One weight in two places, and a parameter that is not used."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [rows, 3] of inputs [rows, 4]."""
        return self.last(torch.tanh(self.first(torch.tanh(self.first(inputs)))))


def _mlp(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), *between, nn.Linear(5, CLASSES))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: _mlp(nn.Tanh()),
    "relu": lambda: _mlp(nn.ReLU()),
    "in_place": lambda: _mlp(nn.LeakyReLU(0.1, inplace=True)),
    "batch_norm": lambda: _mlp(nn.BatchNorm1d(5), nn.Tanh()),
    "batch_norm_eval": lambda: _mlp(nn.BatchNorm1d(5), nn.Tanh()).eval(),
    "dropout": lambda: _mlp(nn.Dropout(0.3), nn.Tanh()),
    "layer_norm": lambda: _mlp(nn.LayerNorm(5), nn.GELU()),
    "weight_norm": lambda: _mlp(nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))),
    "linear": lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 4, 2, padding=1, groups=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(36, CLASSES),
    ),
    "grouped": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 4, 1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, CLASSES)
    ),
    "zeros": lambda: _zeroed(_mlp(nn.Tanh())),
    "frozen": lambda: _frozen(_mlp(nn.Tanh())),
    "recurrent": Recurrent,
    "attention": Attention,
    "lstm": Lstm,
    "tied": Tied,
}


def _zeroed(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def _frozen(model: nn.Module) -> nn.Module:
    next(model.parameters()).requires_grad_(False)
    return model


class _Own:
    """A user's loss, which says that it takes a mean."""

    reduction = "mean"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 4).mean()


def _undeclared(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 4).mean()


class _Poisson(nn.PoissonNLLLoss):
    def forward(self, log_input: Tensor, target: Tensor) -> Tensor:
        return super().forward(log_input, target.abs())


CLASSIFYING: dict[str, Callable[[], Any]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "cross_entropy_sum": lambda: nn.CrossEntropyLoss(reduction="sum"),
    "weighted": lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0])),
    "ignoring": lambda: nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1),
    "multi_margin": nn.MultiMarginLoss,
}
REGRESSING: dict[str, Callable[[], Any]] = {
    "squared": nn.MSELoss,
    "absolute": nn.L1Loss,
    "huber": nn.HuberLoss,
    "squared_sum": lambda: nn.MSELoss(reduction="sum"),
    "poisson": _Poisson,
    "fourth_power": _Own,
    "undeclared": lambda: _undeclared,
}
