"""Small trained models to finish, and contestants whose outcome is known or quick."""

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from latephase import Contestant, Halving, HessianFree, Wants
from latephase.optim.late_phase import one_minus_sqrt


def blobs(rows: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, 4, generator=generator)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()


def classifier(seed: int = 0) -> nn.Module:
    """With batch norm and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3))


def plain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def descent(name: str, lr: float, **more: Any) -> Contestant:
    return Contestant(name, functools.partial(torch.optim.SGD, lr=lr), **({"wants": Wants(32)} | more))


def noisy(seed: int = 0) -> dict[str, Any]:
    """Arguments of `finish`: whatever draws or averages takes part, in every phase."""
    model = classifier(seed)
    inputs, targets = blobs()
    return {
        "model": model,
        "loss": nn.CrossEntropyLoss(),
        "data": (inputs[:200], targets[:200]),
        "held_out": (inputs[200:], targets[200:]),
        "base": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "batch_size": 16,
        "contestants": [
            Contestant("base", None, Wants(16), one_minus_sqrt, average=True, training=True),
            Contestant("hessian_free", HessianFree.late_phase, Wants(96, 48, 24)),
            descent("slow", 0.01, wants=Wants(16), training=True),
        ],
        "settings": Halving(share=0.4, looks=5),
    }


def quick(steps: int = 12, **changes: Any) -> dict[str, Any]:
    """Arguments of `finish` for a model without noise of its own: two rates of gradient descent."""
    inputs, targets = blobs()
    return {
        "model": plain(),
        "loss": nn.CrossEntropyLoss(),
        "data": (inputs[:200], targets[:200]),
        "held_out": (inputs[200:], targets[200:]),
        "contestants": [descent("fast", 0.5), descent("slow", 0.001)],
        "settings": Halving(share=0.5, looks=3),
        "steps": steps,
    } | changes


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]


def held_out_loss(given: dict[str, Any]) -> float:
    """By hand, in eval mode."""
    model, (inputs, targets) = given["model"], given["held_out"]
    modes = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad():
        loss = float(given["loss"](model(inputs), targets))
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return loss


def loader(rows: tuple[torch.Tensor, ...], size: int = 50) -> DataLoader:
    return DataLoader(TensorDataset(*rows), batch_size=size)
