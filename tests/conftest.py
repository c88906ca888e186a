"""What several test modules share: exact snapshots, and the gradient as one vector."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exact import bits


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Any:
    """Parameters, gradients, buffers, the modules' modes and the optimizer's state, for == afterwards.

    An empty entry of the optimizer's state counts as none.
    """
    state = {} if optimizer is None else optimizer.state_dict()
    if state:
        state["state"] = {key: value for key, value in state["state"].items() if value}
    return {
        "parameters": bits(dict(model.named_parameters())),
        "gradients": bits({name: p.grad for name, p in model.named_parameters()}),
        "buffers": bits(dict(model.named_buffers())),
        "modes": [module.training for module in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "optimizer": bits(state),
    }


@pytest.fixture
def unchanged() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """A context manager that fails unless model, optimizer state and torch's generator are bit for bit as before."""

    @contextlib.contextmanager
    def watch(model, optimizer=None, *, generator: bool = False) -> Iterator[None]:
        before, drawn = snapshot(model, optimizer), torch.get_rng_state()
        yield
        assert snapshot(model, optimizer) == before
        assert not generator or torch.equal(drawn, torch.get_rng_state())

    return watch


@pytest.fixture
def gradient_of() -> Callable[[nn.Module], Tensor]:
    """The `.grad` of a model's parameters as one vector."""
    return lambda model: torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


@pytest.fixture
def flat() -> Callable[[nn.Module], Tensor]:
    """A model's parameters as one vector."""
    return lambda model: torch.cat([p.detach().reshape(-1) for p in model.parameters()])
