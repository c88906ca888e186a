"""States of a model: taken, put back, in a mode, with statistics of batches."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...objective import Objective, cuda_devices, forked

State = dict[str, Tensor]
"""Parameters and buffers of a model by name, those included that its state dict leaves out."""


def tensors(model: nn.Module) -> State:
    """The model's own parameters and buffers by name."""
    return {name: p.detach() for name, p in model.named_parameters()} | dict(model.named_buffers())


def taken(model: nn.Module) -> State:
    """A copy of them."""
    return {name: tensor.detach().clone() for name, tensor in tensors(model).items()}


def put(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write a state into the model, in place; what it does not hold stays."""
    with torch.no_grad():
        for name, tensor in tensors(model).items():
            if name in state:
                tensor.copy_(state[name])


def state_dict_with(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A copy of the model's state dict with the tensors of a state; one that modules share has it under each name."""
    names = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    copies: dict[int, Tensor] = {}
    found = {}
    for name, own in model.state_dict(keep_vars=True).items():
        if isinstance(own, Tensor):
            if id(own) not in copies:
                copies[id(own)] = state.get(names.get(id(own), name), own).detach().clone()
            own = copies[id(own)]
        found[name] = own
    return found


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in training or in eval mode; every module's own mode is put back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def layers_with_statistics(model: nn.Module) -> list[_BatchNorm]:
    """Those of the model's modules that keep running statistics of batches."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def renew_statistics(model: nn.Module, objectives: Iterable[Objective], seed: int) -> None:
    """Batch norm's statistics anew, as the plain mean over the batches of objectives (as `swa_utils.update_bn` does).

    The passes draw their random numbers in a fork; modes are put back. Without objectives, or batch norm, nothing is
    done.

    Args:
        model: whose statistics.
        objectives: of the model, on the batches; drawn one by one.
        seed: of the random numbers.
    """
    layers = layers_with_statistics(model)
    if not layers:
        return
    momenta, renewed = {layer: layer.momentum for layer in layers}, False
    try:
        with in_mode(model, True), torch.no_grad(), forked(seed, cuda_devices(model)):
            for objective in objectives:
                if not renewed:
                    _forget(layers)
                    renewed = True
                for chunk in objective.chunks:
                    objective.plain_pass(chunk)
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum


def _forget(layers: Sequence[_BatchNorm]) -> None:
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
