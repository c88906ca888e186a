"""Gradients of single examples by a loop, for the tests of the empirical Fisher matrix."""

from collections.abc import Callable

import torch
from random_tensors import generator
from torch import Tensor, nn

ROWS, INPUTS, CLASSES = 11, 3, 4
TIGHT = 1e-12
"""Float64 on short sums: anything more is an error of the formula."""


def network(outputs: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(1), dtype=torch.float64)


def labels(*shape: int, classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, shape, generator=generator(2))


def by_loop(model: nn.Module, total: Callable[[Tensor, Tensor], Tensor], x, y, factors) -> Tensor:
    """Sum over the rows of factor times the squared gradient of the summed loss of that row."""
    squares = [torch.zeros_like(p) for p in model.parameters()]
    for row in range(len(y)):
        value = total(model(x[row : row + 1]), y[row : row + 1])
        gradients = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
        for square, gradient in zip(squares, gradients, strict=True):
            square += factors[row] * gradient**2
    return torch.cat([square.reshape(-1) for square in squares])
