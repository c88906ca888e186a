"""Gradients of single examples by a loop, for the tests of the empirical Fisher matrix."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_loop(model: nn.Module, total: Callable[[Tensor, Tensor], Tensor], x, y, factors) -> Tensor:
    """Sum over the rows of factor times the squared gradient of the summed loss of that row."""
    squares = [torch.zeros_like(p) for p in model.parameters()]
    for row in range(len(y)):
        value = total(model(x[row : row + 1]), y[row : row + 1])
        gradients = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
        for square, gradient in zip(squares, gradients, strict=True):
            square += factors[row] * gradient**2
    return torch.cat([square.reshape(-1) for square in squares])
