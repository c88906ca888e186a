"""A plain recurrent network whose pre-activations can be seen."""

import torch
from torch import Tensor, nn

from ...objective import WithHidden
from .layers import sparse_

CONNECTIONS = 15
"""Recurrent connections into each unit at the start."""


class Recurrent(nn.Module):
    """h_t = tanh(W h_{t-1} + U x_t + b) from a learned start, and a linear output at the end.

    The network of Martens and Sutskever (2011, "Learning Recurrent Neural Networks with Hessian-Free Optimization").
    The forward pass returns `WithHidden`, so that structural damping works. Initial values are after Sutskever's
    program: each unit gets 15 recurrent connections of standard deviation 1.2 / sqrt(15), of which the program says
    that it works moderately well on all tasks, the others being zero. Input weights have a standard deviation of 0.25,
    so that inputs do not drown the hidden state, and output weights 1 / sqrt(units). The biases, which the program's
    network has not, start at zero, as does the start itself.

    Args:
        inputs: numbers at each time step.
        outputs: at the end.
        units: of the hidden state. Default 100, as in the paper.
    """

    def __init__(self, inputs: int, outputs: int, units: int = 100):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(units))
        self.input = nn.Linear(inputs, units)
        self.hidden = nn.Linear(units, units, bias=False)
        self.output = nn.Linear(units, outputs)
        sparse_(self.hidden.weight, CONNECTIONS, std=1.2 / CONNECTIONS**0.5)
        nn.init.normal_(self.input.weight, std=0.25)
        nn.init.normal_(self.output.weight, std=1 / units**0.5)
        for bias in (self.input.bias, self.output.bias):
            nn.init.zeros_(bias)

    def forward(self, sequences: Tensor) -> WithHidden:
        """Sequences [N, T, inputs] -> outputs [N, outputs], with the pre-activations [N, T, units] beside them."""
        driven = self.input(sequences)
        h = self.start.expand(len(sequences), -1).tanh()
        pre_activations = []
        for x in driven.unbind(1):
            pre_activations.append(self.hidden(h) + x)
            h = pre_activations[-1].tanh()
        return WithHidden(self.output(h), torch.stack(pre_activations, dim=1), "tanh")
