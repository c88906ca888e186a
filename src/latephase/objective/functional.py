"""A model as a function of parameters and buffers that are given by name."""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..parameters import ParameterSpace
from .copies import copied
from .data import Chunk
from .kernels import differentiable_kernels
from .loss_modules import moving_buffers
from .program import Between, Bound, scalar
from .randomness import cuda_devices, forked, generator_states, set_generator_states
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

    def space(self, parameters: Sequence[nn.Parameter] | None = None) -> ParameterSpace:
        """The space of the given parameters, matched with the model's by identity.

        Args:
            parameters: an optimizer's parameters. Default: all of the model's, in `model.parameters()` order.

        Raises:
            ValueError: a parameter is not the model's, or none is trainable.
        """
        names = {id(p): name for name, p in self.model.named_parameters()}
        if parameters is None:
            parameters = list(self.model.parameters())
        for position, p in enumerate(parameters):
            if id(p) not in names:
                raise ValueError(
                    f"parameter {position} (shape {tuple(p.shape)}) of the optimizer is not a parameter of the "
                    f"objective's model {type(self.model).__name__}; build both from the same model"
                )
        return ParameterSpace(parameters, [names[id(p)] for p in parameters])

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
        named = [(name, tensor) for source in (at, buffers) for name, tensor in source.items()]
        swap = {place: tensor for name, tensor in named if name in places for place in places[name]}
        own = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        precision = None if dtype is None else (dtype, own)
        of_loss = {} if dtype else {name: buffers[name] for name in self._buffers_of_loss() if name in buffers}

        def call() -> tuple[tuple[Tensor, Any], dict[str, Tensor]]:
            bound = Bound(self.model, self.program)
            with self._loss_on(of_loss) if self._held_by_loss else contextlib.nullcontext(dict[str, Tensor]()) as moved:
                result = functional_call(bound, swap, (chunk, precision, between), tie_weights=False)
            return result, bound.buffers_after | (moved if of_loss else {})

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
            lambda: self._keep(self._live_buffers() if self._has_buffers else {}),
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
            set_generator_states(states, devices)

        return undo

    @cached_property
    def _has_buffers(self) -> bool:
        return bool(self._held_by_loss) or any(True for _ in self.model.buffers())

    @cached_property
    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.model.named_parameters())

    def evaluate_loss(self, outputs: Any, targets: Any, seed: int | None = 0) -> Tensor:
        """The loss of given outputs, without side effect; on torch's generators where no seed is given.

        A loss may work in place: outputs that carry a graph are as safe as in a pass, and targets are copies.
        """
        numbers = contextlib.nullcontext() if seed is None else forked(seed, cuda_devices(self.model))
        with torch.enable_grad(), numbers, self._loss_on({}):
            return scalar(self.program.loss_of(outputs, copied(targets)))

    @contextlib.contextmanager
    def _loss_on(self, buffers: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Within, modules that the loss holds have the given buffers, and copies of their own where none is given.

        Yields:
            Filled at the end: the buffers as they were left.
        """
        places = self._buffers_of_loss()
        own = {name: module._buffers[key] for name, (module, key) in places.items()}
        after: dict[str, Tensor] = {}
        try:
            for name, (module, key) in places.items():
                value = own[name]
                module._buffers[key] = buffers[name] if name in buffers or value is None else value.detach().clone()
            yield after
        finally:
            for name, (module, key) in places.items():
                value = module._buffers[key]
                if value is not None:
                    after[name] = value.detach()
                module._buffers[key] = own[name]

    def _buffers_of_loss(self) -> dict[str, tuple[nn.Module, str]]:
        """Where buffers hang that a pass may move outside the model, in modules that loss or `forward` hold."""
        return {name: (module, key) for name, (module, key) in self._held_by_loss.items() if module.training}

    @cached_property
    def _held_by_loss(self) -> dict[str, tuple[nn.Module, str]]:
        found = moving_buffers((self.program.loss, self.program.forward), self.model)
        return {f"loss: {name}": place for name, place in found.items()}

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
        """Copies of the buffers that a pass may move, by name: the model's, and of modules that the loss holds."""
        return {name: buffer.clone() for name, buffer in self._live_buffers().items()}

    def _live_buffers(self) -> dict[str, Tensor]:
        of_loss = {name: module._buffers[key] for name, (module, key) in self._buffers_of_loss().items()}
        held = {name: buffer.detach() for name, buffer in of_loss.items() if buffer is not None}
        return dict(self.model.named_buffers()) | held

    def write_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Write buffers by name into the model, and into modules that the loss holds."""
        with torch.no_grad():
            for own, value in self.writable_buffers(buffers):
                own.copy_(value)

    def writable_buffers(self, buffers: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The buffers of the model, and of the loss's modules, each with the value that is to be written into it.

        Left out is one whose elements share memory (an expanded tensor) and that stays as it is.

        Raises:
            ValueError: such a buffer moved: it cannot be written.
        """
        pairs = []
        for name, buffer in self._live_buffers().items():
            if not _shares_memory(buffer):
                pairs.append((buffer, buffers[name]))
            elif not torch.equal(buffer, buffers[name]):
                raise ValueError(f"buffer {name!r} moves in the forward pass, but {_UNWRITABLE}")
        return pairs

    def check_buffers(self) -> None:
        """See that the buffers of modules in training mode can be written, before a pass that moves them in place.

        Raises:
            ValueError: one shares memory with itself.
        """
        for prefix, module in self.model.named_modules():
            for name, buffer in module.named_buffers(recurse=False) if module.training else ():
                if _shares_memory(buffer):
                    raise ValueError(f"buffer {f'{prefix}.{name}'.lstrip('.')!r} may move, but {_UNWRITABLE}")


_UNWRITABLE = (
    "cannot be written, since several of its elements are one place in memory (it was made by expand); register "
    "buffer.clone() instead"
)


def _shares_memory(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided:
        return False
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
