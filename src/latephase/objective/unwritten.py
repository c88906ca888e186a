"""A forward pass that writes parameters is refused."""

import weakref

import torch
from torch import nn

from .substitutes import derivative_levels

_watched: "weakref.WeakKeyDictionary[nn.Module, set[bool]]" = weakref.WeakKeyDictionary()
"""In which modes (training or not) a model's pass has been compared by values."""

_OUTERMOST = derivative_levels()


class Unwritten:
    """Refuses a pass that writes a parameter, by its version; a model's first pass also by its values.

    What the first pass has written is put back. A write through `.data` shows by values alone.

    Args:
        model: whose pass it is.
        parameters: all of its parameters, with their names.
    """

    def __init__(self, model: nn.Module, parameters: list[tuple[str, nn.Parameter]]):
        self._model, self._parameters = model, parameters

    def __enter__(self) -> None:
        self._versions = self._read_versions()
        self._copies = [p.detach().clone() for _, p in self._parameters] if self._first() else None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        written = []
        if self._versions != (versions := self._read_versions()):
            pairs = zip(self._parameters, self._versions, versions, strict=True)
            written = [name for (name, _), before, after in pairs if before != after]
        if self._copies is not None:
            written += self._put_back(self._copies)
        if kind is not None:
            return
        if written:
            raise RuntimeError(
                f"the forward pass writes the parameter {written[0]!r} of {type(self._model).__name__} in place, so "
                "that its loss is not a function of the parameters; write it after the optimizer's step, or register "
                "the tensor as a buffer"
            )
        if self._copies is not None:
            _watched.setdefault(self._model, set()).add(self._model.training)

    def _read_versions(self) -> list[int]:
        try:
            return [p._version for _, p in self._parameters]
        except RuntimeError:  # made under torch.inference_mode, where tensors have none
            return []

    def _first(self) -> bool:
        """Whether values are compared: once, and where no transform or recorder of operations would see it."""
        if self._model.training in _watched.get(self._model, ()):
            return False
        return derivative_levels() == _OUTERMOST and not torch._C._len_torch_dispatch_stack()

    def _put_back(self, copies: list[torch.Tensor]) -> list[str]:
        """Undo what was written, and say where."""
        written = []
        for (name, p), copy in zip(self._parameters, copies, strict=True):
            if not torch.allclose(p, copy, 0.0, 0.0, equal_nan=True):
                p.data.copy_(copy)
                written.append(name)
        return written
