"""A model as a function of parameters and buffers that are given by name."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .chunks import Chunk
from .kernels import differentiable_kernels
from .program import Between, Bound


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
        bound = Bound(self.model, self.program)
        own = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        precision = None if dtype is None else (dtype, own)
        with differentiable_kernels(self.model):  # every pass of a step, so that losses differ by their parameters only
            result = functional_call(bound, swap, (chunk, precision, between), tie_weights=False)
        buffers.update({name: buffer for name, buffer in bound.buffers_after.items() if name in buffers})
        return result

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
            for own, value in self.writable_buffers(buffers):
                own.copy_(value)

    def writable_buffers(self, buffers: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The model's buffers, each with the value by its name that is to be written into it.

        Left out is one whose elements share memory (an expanded tensor) and that stays as it is.

        Raises:
            ValueError: such a buffer moved: it cannot be written.
        """
        pairs = []
        for name, buffer in self.model.named_buffers():
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
