"""A step as a transaction: all that it writes, or nothing."""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..curvature.traces import kept_traces, put_back
from ..objective import Objective
from ..parameters import ParameterSpace
from ..randomness import cuda_devices, generator_states, set_generator_states


class Transaction:
    """Within, an exception of any kind leaves everything as it was, so that a second try is as good as the first.

    What is put back: parameters and buffers, the optimizer's state and param groups, its report, torch's generators,
    the objectives' seeds, and which shapes were seen before (a traced product differs from another in its last digits).
    States and param groups are copied one level deep: a step replaces what it keeps and writes into no tensor of it.

    Args:
        optimizer: whose step this is.
        objectives: that the step uses, of one model.

    Raises:
        RuntimeError: inference mode is on, in which nothing can be differentiated.
    """

    def __init__(self, optimizer: Optimizer, objectives: Iterable[Objective]):
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{type(optimizer).__name__}.step needs gradients, which inference mode forbids: call it outside"
            )
        self._optimizer, self._objectives = optimizer, list(objectives)
        self._model = self._objectives[0].model
        self._written: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> Self:
        optimizer = self._optimizer
        self._devices = cuda_devices(self._model)
        self._generators = generator_states(self._devices)
        self._seeds = [objective.seed for objective in self._objectives]
        self._state = {key: dict(entry) if isinstance(entry, dict) else entry for key, entry in optimizer.state.items()}
        self._groups = [dict(group) for group in optimizer.param_groups]
        self._attributes = {name: vars(optimizer)[name] for name in _ATTRIBUTES if name in vars(optimizer)}
        self._traces = kept_traces(self._model)
        return self

    def write(self, space: ParameterSpace, vector: Tensor, objective: Objective, buffers: Mapping[str, Tensor]) -> None:
        """Make the vector [P] the parameters' values, and the buffers the model's.

        Raises:
            ValueError: a buffer that moved shares memory with itself and cannot be written; nothing is.
        """
        moved = objective.writable_buffers(buffers)
        pairs = [*zip(space.parameters, space.unflatten(vector), strict=True), *moved]
        with torch.no_grad():
            self._written = [(own, own.detach().clone()) for own, _ in pairs]
            for own, value in pairs:
                own.copy_(value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            return
        optimizer = self._optimizer
        with torch.no_grad():
            for own, value in self._written:
                own.copy_(value)
        optimizer.state.clear()
        optimizer.state.update(self._state)
        for group, before in zip(optimizer.param_groups, self._groups, strict=True):
            group.clear()
            group.update(before)
        for name in _ATTRIBUTES:
            vars(optimizer).pop(name, None)
        vars(optimizer).update(self._attributes)
        set_generator_states(self._generators, self._devices)
        for objective, seed in zip(self._objectives, self._seeds, strict=True):
            objective.seed = seed
        put_back(self._model, self._traces)


_ATTRIBUTES = ("report", "_warned", "_ranks_compared")
