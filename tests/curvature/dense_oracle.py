"""Dense float64 oracles: loss, gradient, GGN and Hessian of a small network as whole matrices.

Nothing is shared with the library: the Jacobian and the Hessians are torch.autograd's, of a functional call with one
flat parameter vector, on the whole batch at once.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class Dense:
    """Loss (0-dim), gradient [P], GGN [P, P] and Hessian [P, P]."""

    loss: Tensor
    gradient: Tensor
    ggn: Tensor
    hessian: Tensor

    def matrix(self, curvature: str) -> Tensor:
        """The matrix of this name."""
        return {"ggn": self.ggn, "hessian": self.hessian}[curvature]


def dense_oracle(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs,
    targets: Tensor,
    *,
    forward: Callable = lambda model, inputs: model(inputs),
    parameters: Iterable[Tensor] | None = None,
    decay: Callable[[str, Tensor], float] = lambda name, parameter: 0.0,
) -> Dense:
    """The oracle of loss(model(inputs), targets) + sum_i 0.5 decay_i theta_i^2.

    GGN = J' H_L J with J the Jacobian of all outputs [N * C, P] and H_L the Hessian of the loss in them [N * C, N * C];
    the sum over rows where the loss is one, and right where it is not. Buffers of the model are not touched.
    """
    wanted = [p for p in model.parameters() if p.requires_grad] if parameters is None else list(parameters)
    named = dict(model.named_parameters())
    names = [next(name for name, parameter in named.items() if parameter is p) for p in wanted]
    constants = {name: parameter.detach().clone() for name, parameter in named.items()}
    twin = copy.deepcopy(model)

    def unflatten(theta: Tensor) -> dict[str, Tensor]:
        pieces = theta.split([named[name].numel() for name in names])
        return constants | {name: piece.view_as(named[name]) for name, piece in zip(names, pieces, strict=True)}

    def outputs_of(theta: Tensor) -> Tensor:
        moved = unflatten(theta)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            return forward(lambda *args: functional_call(twin, moved, args), inputs)

    def penalty(theta: Tensor) -> Tensor:
        terms = [0.5 * decay(name, parameter) * parameter.pow(2).sum() for name, parameter in unflatten(theta).items()]
        return torch.stack(terms).sum()

    def objective(theta: Tensor) -> Tensor:
        return loss(outputs_of(theta), targets) + penalty(theta)

    theta = torch.cat([named[name].detach().reshape(-1) for name in names])
    outputs = outputs_of(theta).detach()
    jacobian = torch.autograd.functional.jacobian(lambda t: outputs_of(t).reshape(-1), theta)
    loss_hessian = torch.autograd.functional.hessian(lambda z: loss(z.view_as(outputs), targets), outputs.reshape(-1))
    assert isinstance(jacobian, Tensor)
    assert isinstance(loss_hessian, Tensor)
    ridge = torch.cat([torch.full_like(named[name].detach().reshape(-1), decay(name, named[name])) for name in names])
    hessian = torch.autograd.functional.hessian(objective, theta)
    assert isinstance(hessian, Tensor)
    point = theta.clone().requires_grad_()
    value = objective(point)
    (gradient,) = torch.autograd.grad(value, point)
    return Dense(value.detach(), gradient, jacobian.T @ loss_hessian @ jacobian + torch.diag(ridge), hessian)


def columns(matvec: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """The matrix whose columns are the products with the unit vectors."""
    return torch.stack([matvec(unit) for unit in torch.eye(size, dtype=torch.float64)], dim=1)


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest entry expected."""
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-300))
