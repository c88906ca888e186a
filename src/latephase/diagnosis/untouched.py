"""A model left as it was, whatever is run on it in between."""

import contextlib
import pickle
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..curvature import bring_back, set_aside
from ..objective import cuda_devices


@contextlib.contextmanager
def untouched(model: nn.Module, held: Sequence[nn.Module | Tensor] = ()) -> Iterator[None]:
    """Within, a model may be run in any way; afterwards all that a forward pass or a product moves is as before.

    That is: buffers, modes, gradients, the global generators of torch, Python and NumPy, and the traces kept for the
    model, so that the next step is the one that it would have been. Parameters are not copied: nothing here writes
    them.

    Args:
        model: the model.
        held: modules that are kept in the same way, and tensors whose values are.
    """
    modules = {id(m): m for root in (model, *held) if isinstance(root, nn.Module) for m in root.modules()}.values()
    buffers = [(module, name, buffer) for module in modules for name, buffer in module._buffers.items()]
    tensors = [(x, x.detach().clone()) for x in held if isinstance(x, Tensor) and not isinstance(x, nn.Parameter)]
    values = {id(buffer): buffer.clone() for _, _, buffer in buffers if buffer is not None}
    gradients = [(p, p.grad) for p in model.parameters()]
    kept = set_aside(model)
    python, numpy, state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    devices = cuda_devices(model)
    on_devices = [torch.cuda.get_rng_state(device) for device in devices]
    try:
        with contextlib.ExitStack() as modes:
            for module in (model, *(each for each in held if isinstance(each, nn.Module))):
                modes.enter_context(modes_kept(module))
            yield
    finally:
        with torch.no_grad():
            for tensor, value in tensors:
                if not _same(tensor, value):
                    tensor.copy_(value)
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
                if buffer is not None and not _same(buffer, values[id(buffer)]):
                    buffer.copy_(values[id(buffer)])
        for p, gradient in gradients:
            p.grad = gradient
        bring_back(model, kept)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(state)
        for device, own in zip(devices, on_devices, strict=True):
            torch.cuda.set_rng_state(own, device)


@contextlib.contextmanager
def modes_kept(model: nn.Module, training: bool | None = None) -> Iterator[None]:
    """Within, every module is in the given mode, set on each by hand; afterwards each is in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        if training is not None:
            for module, _ in modes:
                module.training = training
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def draws_outside_torch(found: list[str]) -> Iterator[None]:
    """Within, notice which global generators outside torch are drawn from; their names are added to the list."""

    def states() -> dict[str, bytes]:
        return {
            "NumPy's global generator": pickle.dumps(np.random.get_state()),  # noqa: NPY002
            "Python's random": pickle.dumps(random.getstate()),
        }

    before = states()
    try:
        yield
    finally:
        found += [name for name, state in states().items() if state != before[name]]


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.shape == y.shape and bool(torch.equal(x, y))
