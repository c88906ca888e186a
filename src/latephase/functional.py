"""A model as a function of parameters and buffers that are given by name."""

from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .chunks import Chunk
from .kernels import differentiable_kernels
from .program import Between, Bound
from .randomness import cuda_devices, generator_states, put_back
from .substitutes import substituted
from .unwritten import Unwritten


class FunctionalModel:
    """Passes over chunks at parameters other than the model's own, which stay as they are.

    Attributes:
        model: the module.
        program: what a pass computes, `LossOfOutputs` or `FreeForm`.
    """

    model: nn.Module
    program: Any

    def forward_pass(
        self,
        chunk: Chunk,
        at: Mapping[str, Tensor],
        buffers: dict[str, Tensor],
        dtype: torch.dtype | None = None,
        between: Between | None = None,
    ) -> tuple[Tensor, Any]:
        """Loss and outputs of one chunk as a function of parameters and buffers, given by name.

        The model's own parameters and buffers stay as they are; buffers that the pass moves are moved in `buffers`.

        Args:
            chunk: the data.
            at: parameters in place of the model's own.
            buffers: buffers in place of the model's own; holds what they are afterwards.
            dtype: dtype in which the model runs, its floating-point inputs cast; the loss gets the outputs in the
                model's own.
            between: applied to the outputs before the loss gets them; not with `from_forward`.
        """
        places = self._places
        swap = {place: tensor for source in (at, buffers) for name, tensor in source.items() for place in places[name]}
        own = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        precision = None if dtype is None else (dtype, own)

        def call() -> tuple[tuple[Tensor, Any], dict[str, Tensor]]:
            bound = Bound(self.model, self.program)
            result = functional_call(bound, swap, (chunk, precision, between), tie_weights=False)
            return result, bound.buffers_after

        # Of every pass of a step, so that losses differ by their parameters only.
        with differentiable_kernels(self.model), Unwritten(self.model, self._named_parameters):
            result, after = substituted(self.model, self.kind_of(chunk), call, lambda: self._keep(buffers))
        buffers.update({name: buffer for name, buffer in after.items() if name in buffers})
        return result

    def plain_pass(self, chunk: Chunk, first_order: bool = False) -> tuple[Tensor, Any]:
        """Loss and outputs of one chunk by an ordinary call of the model, which moves the model's buffers.

        Args:
            chunk: the data.
            first_order: nothing but a gradient will be asked for.
        """
        return substituted(
            self.model,
            self.kind_of(chunk),
            lambda: self.program(self.model, chunk),
            lambda: self._keep(dict(self.model.named_buffers()) if self._has_buffers else {}),
            first_order,
        )

    def kind_of(self, chunk: Chunk) -> Hashable:
        """What tells passes apart that may take derivatives from those that do not."""
        inputs = chunk.inputs
        if isinstance(inputs, Mapping):
            return self.model.training, frozenset(inputs), self._codes
        return self.model.training, len(inputs) if isinstance(inputs, tuple) else None, self._codes

    @cached_property
    def _codes(self) -> Hashable:
        program = self.program
        return tuple(getattr(function, "__code__", type(function)) for function in (program.forward, program.loss))

    def _keep(self, buffers: dict[str, Tensor]) -> Callable[[], None]:
        """Keep what a pass may move; returns what puts it back."""
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        devices = cuda_devices(self.model) if torch.cuda.is_available() else []
        states = generator_states(devices)

        def undo() -> None:
            with torch.no_grad():
                for name, copy in copies.items():
                    buffers[name].copy_(copy)
            put_back(states, devices)

        return undo

    @cached_property
    def _has_buffers(self) -> bool:
        return any(True for _ in self.model.buffers())

    @cached_property
    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.model.named_parameters())

    @cached_property
    def _places(self) -> dict[str, list[str]]:
        """Where in `Bound` each parameter and buffer hangs, by its name in the model; tied ones hang in several places.

        `functional_call` ties weights by itself, but leaves its tensors behind in a module that is registered twice.
        """
        names = {id(tensor): name for name, tensor in _named_tensors(self.model)}
        places: dict[str, list[str]] = {name: [] for name in names.values()}
        for prefix, module in self.model.named_modules(prefix="model"):
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    places[names[id(tensor)]].append(f"{prefix}.{key}")
        return places

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the model's buffers by name."""
        return {name: buffer.clone() for name, buffer in self.model.named_buffers()}

    def write_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Write buffers by name into the model."""
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
