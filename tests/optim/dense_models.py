"""Dense float64 oracles of one step: quadratic models as matrices, conjugate gradients in a few lines of torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Loss = Callable[[Any, Tensor], Tensor]


@dataclass
class Model:
    """f(theta), its gradient [P] and its curvature [P, P]."""

    loss: float
    gradient: Tensor
    matrix: Tensor

    def change(self, step: Tensor, matrix: Tensor | None = None) -> float:
        """q(p) = g'p + 0.5 p'Cp, with another matrix in place of C where one is given."""
        return float(self.gradient @ step + 0.5 * step @ (self.matrix if matrix is None else matrix) @ step)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def function_of_theta(model: nn.Module, inputs: Any) -> Callable[[Tensor], Any]:
    """theta [P] -> what the model returns, without its own parameters."""
    names, shapes = zip(*[(name, p.shape) for name, p in model.named_parameters()], strict=True)

    def forward(theta: Tensor) -> Any:
        parts = theta.split([shape.numel() for shape in shapes])
        return functional_call(model, {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}, (inputs,))

    return forward


def dense_model(
    model: nn.Module, loss: Loss, data: tuple[Any, Tensor], curvature: str = "ggn", weight_decay: float = 0.0
) -> Model:
    """The model of f(theta) = loss(model(inputs), targets) + 0.5 wd |theta|^2, by torch.autograd.functional."""
    inputs, targets = data
    forward, theta = function_of_theta(model, inputs), flat(model)

    def outputs(theta: Tensor) -> Tensor:
        result = forward(theta)
        return result.outputs if hasattr(result, "outputs") else result

    def value(theta: Tensor) -> Tensor:
        return loss(outputs(theta), targets) + 0.5 * weight_decay * theta @ theta

    if curvature == "hessian":
        matrix = torch.autograd.functional.hessian(value, theta)
    else:
        z = outputs(theta).detach()
        jacobian = torch.autograd.functional.jacobian(lambda t: outputs(t).reshape(-1), theta)
        inner = torch.autograd.functional.hessian(lambda u: loss(u.view_as(z), targets), z.reshape(-1))
        matrix = jacobian.T @ inner @ jacobian + weight_decay * torch.eye(len(theta), dtype=theta.dtype)
    return Model(float(value(theta)), torch.autograd.functional.jacobian(value, theta), matrix)


def without_cross_blocks(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """The matrix with zeros outside of its diagonal blocks of these sizes."""
    mask, begin = torch.zeros_like(matrix), 0
    for size in sizes:
        mask[begin : begin + size, begin : begin + size] = 1.0
        begin += size
    return mask * matrix


def cg(matrix: Tensor, b: Tensor, count: int, x0: Tensor | None = None) -> list[Tensor]:
    """Iterates x_0 .. x_count of plain conjugate gradients (Hestenes and Stiefel)."""
    x = torch.zeros_like(b) if x0 is None else x0
    r = b - matrix @ x
    p, iterates = r, [x]
    for _ in range(count):
        product = matrix @ p
        alpha = (r @ r) / (p @ product)
        x, new = x + alpha * p, r - alpha * product
        p, r = new + (new @ new) / (r @ r) * p, new
        iterates.append(x)
    return iterates


def blockwise_cg(matrix: Tensor, b: Tensor, count: int, sizes: Sequence[int], x0: Tensor | None = None) -> list[Tensor]:
    """Iterates of independent runs on the diagonal blocks, side by side."""
    runs, begin = [], 0
    for size in sizes:
        rows = slice(begin, begin + size)
        runs.append(cg(matrix[rows, rows], b[rows], count, None if x0 is None else x0[rows]))
        begin += size
    return [torch.cat(parts) for parts in zip(*runs, strict=True)]


def reweighed(matrix: Tensor, b: Tensor, directions: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """0, and the iterates behind each direction with the length that minimises this model along it, per block."""
    x = torch.zeros_like(b)
    iterates = [x]
    for direction in directions:
        x, begin = x.clone(), 0
        for size in sizes:
            rows = slice(begin, begin + size)
            block, d = matrix[rows, rows], direction[rows]
            if (curvature := d @ block @ d) > 0:
                x[rows] += d @ (b[rows] - block @ x[rows]) / curvature * d
            begin += size
        iterates.append(x)
    return iterates
