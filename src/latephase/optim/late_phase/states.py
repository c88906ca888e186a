"""States of a model: taken, put back, averaged."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...objective import Objective, cuda_devices, forked

State = dict[str, Tensor]
"""Parameters and buffers of a model by name, those included that its state dict leaves out."""
LATENESS = 3
"""Of `TailAverage`. With 3 half of the weight lies on the newest sixth of the states."""


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


class TailAverage:
    """The average of a model's states, the newer ones counting more: the state of step k with weight about k^3.

    Polynomial-decay averaging (Shamir and Zhang 2013, "Stochastic Gradient Descent for Non-smooth Optimization",
    Section 3.2, with eta = `LATENESS`): x_k <- (1 - (eta + 1) / (k + eta)) x_(k-1) + (eta + 1) / (k + eta) theta_k. It
    needs one state of memory and, unlike an exponential average, no horizon: when it is asked for, a good part of the
    newest states is in it, however many there were.
    """

    def __init__(self):
        self.count = 0
        self.mean: State = {}

    def add(self, model: nn.Module) -> None:
        """Count the model's present state in; of integers, such as counters, the newest is kept."""
        self.count += 1
        weight = min(1.0, (LATENESS + 1) / (self.count + LATENESS))
        for name, tensor in tensors(model).items():
            if name not in self.mean or not tensor.dtype.is_floating_point:
                self.mean[name] = tensor.detach().clone()
            else:
                self.mean[name].lerp_(tensor, weight)

    def state_dict(self) -> dict[str, Any]:
        """As plain values and tensors."""
        return {"count": self.count, "mean": {name: tensor.clone() for name, tensor in self.mean.items()}}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.count, self.mean = saved["count"], {name: tensor.clone() for name, tensor in saved["mean"].items()}


def renew_statistics(model: nn.Module, objectives: Sequence[Objective], seed: int) -> None:
    """Batch norm's statistics anew, as the plain mean over the batches of objectives (as `swa_utils.update_bn` does).

    The passes draw their random numbers in a fork; modes are put back.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers or not objectives:
        return
    momenta = {layer: layer.momentum for layer in layers}
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over batches
        with in_mode(model, True), torch.no_grad(), forked(seed, cuda_devices(model)):
            for objective in objectives:
                for chunk in objective.chunks:
                    objective.plain_pass(chunk)
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
