"""A step as a transaction: all that it writes, or nothing."""

import dataclasses
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from ...curvature import kept_traces, put_back
from ...objective import (
    Objective,
    Reduce,
    cuda_devices,
    generator_states,
    kept_kinds,
    other_generators,
    put_back_kinds,
    set_generator_states,
    traffic,
)
from ...parameters import ParameterSpace
from .arguments import check_objective
from .ranks import check_groups_of_ranks, notice_plain_module, of_blocks, one_fate


class Transaction:
    """Within, an exception of any kind leaves everything as it was, so that a second try is as good as the first.

    What is put back: parameters and buffers, the optimizer's state and param groups, its report, the generators of
    torch, Python, NumPy and the model's modules, the objectives' seeds, and which shapes and kinds of passes were seen
    before (a traced product, or a norm written out, differs from another in its last digits).
    States and param groups are copied one level deep: a step replaces what it keeps and writes into no tensor of it.

    An exception on one rank is one on all: the ranks meet at the end, and where one does not get there, all put back
    what they wrote. After a step that failed, the next compares everything that ranks must have in common.

    Args:
        optimizer: whose step this is.
        objectives: that the step uses, of one model; the first is one, and one may be there twice.
        block_group: ranks that share blocks.

    Attributes:
        objectives: those given, each once.

    Raises:
        RuntimeError: inference mode is on, in which nothing can be differentiated.
        TypeError: not objectives.
        ValueError: objectives of different models or ranks, or groups of ranks that do not fit.
    """

    def __init__(
        self, optimizer: Optimizer, objectives: Iterable[Objective], block_group: dist.ProcessGroup | None = None
    ):
        self._optimizer = optimizer
        self.objectives = list({id(objective): objective for objective in objectives}.values())
        check_objective(self.objectives[0], self.objectives[0], type(optimizer).__name__)
        self._model = self.objectives[0].model
        self._block_group = block_group
        self._written: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> Self:
        with one_fate(self.objectives[0], self._block_group) as ranks:
            self._begin()
            if not vars(self._optimizer).get("_ranks_compared"):
                notice_plain_module(self.objectives[0], self._block_group, stacklevel=4)
            self._ranks = ranks.pop_all()
        self._traffic = traffic()
        return self

    def _begin(self) -> None:
        optimizer = self._optimizer
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{type(optimizer).__name__}.step needs gradients, which inference mode forbids: call it outside"
            )
        for each in self.objectives:
            check_objective(each, self.objectives[0], type(optimizer).__name__)
        check_groups_of_ranks(self.objectives[0], self._block_group)
        self._devices = cuda_devices(self._model)
        self._generators = generator_states(self._devices)
        self._put_back_others = other_generators(self._model)
        self._seeds = [objective.seed for objective in self.objectives]
        self._state = {key: dict(entry) if isinstance(entry, dict) else entry for key, entry in optimizer.state.items()}
        self._groups = [dict(group) for group in optimizer.param_groups]
        self._attributes = {name: vars(optimizer)[name] for name in _ATTRIBUTES if name in vars(optimizer)}
        self._traces, self._kinds = kept_traces(self._model), kept_kinds(self._model)
        first = self.objectives[0]  # an estimate may run the model itself, which moves its buffers
        self._buffers = first.writable_buffers(first.buffers())

    def write(self, space: ParameterSpace, vector: Tensor, objective: Objective, buffers: Mapping[str, Tensor]) -> None:
        """Make the vector [P] the parameters' values, and the buffers the model's.

        A rank without rows keeps its buffers, which no data of its own has moved.

        Raises:
            ValueError: a buffer that moved shares memory with itself and cannot be written; nothing is.
        """
        moved = [] if objective.idle else objective.writable_buffers(buffers)
        pairs = [*zip(space.parameters, space.unflatten(vector), strict=True), *moved]
        with torch.no_grad():
            self._written = [(own, own.detach().clone()) for own, _ in pairs]
            for own, value in pairs:
                own.copy_(value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            with self._ranks:
                try:
                    self._meet()
                except BaseException:
                    self._restore()
                    raise
            return
        self._restore()
        self._ranks.__exit__(kind, error, traceback)

    def _all_ranks(self) -> tuple[Reduce, Reduce]:
        """Those that share the data, and those that share the blocks."""
        return self.objectives[0].reduce, of_blocks(self._block_group)

    def _meet(self) -> None:
        """Wait until all ranks are here, each with all done; the report then says how much they said to each other."""
        ranks = self._all_ranks()
        for each in ranks:
            each.meet()
        report = vars(self._optimizer).get("report")
        if any(each.size > 1 for each in ranks) and report is not None:
            said = traffic() - self._traffic
            self._optimizer.report = dataclasses.replace(  # pyright: ignore[reportAttributeAccessIssue]
                report, collectives=said.collectives, collective_bytes=said.bytes
            )

    def _restore(self) -> None:
        optimizer = self._optimizer
        with torch.no_grad():
            for own, value in self._written:
                own.copy_(value)
            for own, value in self._buffers:
                if not torch.equal(own, value):
                    own.copy_(value)
        optimizer.state.clear()
        optimizer.state.update(self._state)
        for group, before in zip(optimizer.param_groups, self._groups, strict=True):
            group.clear()
            group.update(before)
        for name in _ATTRIBUTES:
            vars(optimizer).pop(name, None)
        vars(optimizer).update(self._attributes)
        if any(each.size > 1 for each in self._all_ranks()):
            vars(optimizer)["_ranks_compared"] = False
        set_generator_states(self._generators, self._devices)
        self._put_back_others()
        for objective, seed in zip(self.objectives, self._seeds, strict=True):
            objective.seed = seed
        put_back(self._model, self._traces)
        put_back_kinds(self._model, self._kinds)


_ATTRIBUTES = ("report", "_warned", "_ranks_compared")
