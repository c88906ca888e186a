"""Gauss-Newton products of other packages, where they are installed, on the same model, loss and data.

They run with the kernels that our products run with (`kernels.differentiable_kernels`): without, attention and
recurrent layers would fail in both.
"""

from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from ..objective import differentiable_kernels
from .contender import Contender

PACKAGES = {"BackPACK": "backpack-for-pytorch", "curvlinops": "curvlinops-for-pytorch"}
"""Name on the package index, by the name in tables."""

Setup = Callable[[nn.Module, nn.Module, Tensor, Tensor, Tensor], Contender]


def versions() -> dict[str, str | None]:
    """The installed version of each package, None where it is missing."""
    return {name: _version(package) for name, package in PACKAGES.items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def backpack(model: nn.Module, loss: nn.Module, inputs: Tensor, targets: Tensor, v: Tensor) -> Contender:
    """BackPACK's `ggn_vector_product`, on one forward pass that is kept for all products."""
    from backpack.hessianfree.ggnvp import ggn_vector_product  # pyright: ignore[reportMissingImports]

    parameters = list(model.parameters())
    pieces = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in parameters]), parameters, strict=True)]

    def forward() -> tuple[Tensor, Tensor]:
        with differentiable_kernels(model):
            outputs = model(inputs)
            return loss(outputs, targets), outputs

    def multiply(value: Tensor, outputs: Tensor) -> Tensor:
        with differentiable_kernels(model):
            product = ggn_vector_product(value, outputs, model, pieces)
        return torch.cat([part.reshape(-1) for part in product])

    def first() -> object:
        value, outputs = forward()
        gradient = torch.autograd.grad(value, parameters, retain_graph=True)
        return gradient, multiply(value, outputs)

    kept = forward()
    return Contender(product=lambda: multiply(*kept), first=first)


def curvlinops(model: nn.Module, loss: nn.Module, inputs: Tensor, targets: Tensor, v: Tensor) -> Contender:
    """`GGNLinearOperator` of curvlinops, which runs the forward pass anew in every product."""
    from curvlinops import GGNLinearOperator  # pyright: ignore[reportMissingImports]

    parameters = list(model.parameters())

    def operator() -> Any:
        return GGNLinearOperator(model, loss, parameters, [(inputs, targets)], check_deterministic=False)

    def multiply(by: Any) -> Tensor:
        with differentiable_kernels(model):
            return by @ v

    def first() -> object:
        gradient = torch.autograd.grad(loss(model(inputs), targets), parameters)
        return gradient, multiply(operator())

    kept = operator()
    return Contender(product=lambda: multiply(kept), first=first)


PEERS: dict[str, Setup] = {"BackPACK": backpack, "curvlinops": curvlinops}
