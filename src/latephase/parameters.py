"""The space of the parameters: flat vectors, matching with a model, param groups as blocks."""

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class ParameterSpace:
    """Parameters in a fixed order, and the flat vectors [P] over them.

    Flat vectors are at least float32, so that bfloat16 and float16 parameters lose nothing inside a step.

    Args:
        parameters: the parameters in order; those that do not require a gradient are left out.
        names: a name for each.

    Raises:
        ValueError: no parameter requires a gradient, or one is of a kind that flat vectors cannot hold.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], names: Sequence[str]):
        pairs = [(p, name) for p, name in zip(parameters, names, strict=True) if p.requires_grad]
        if not pairs:
            raise ValueError(
                f"no trainable parameter: none of the {len(parameters)} parameters requires a gradient; "
                "set requires_grad=True on those that should move"
            )
        self.parameters = [p for p, _ in pairs]
        self.names = [name for _, name in pairs]
        for p, name in pairs:
            _check_parameter(p, name)
        devices = sorted({str(p.device) for p in self.parameters})
        if len(devices) > 1:
            raise ValueError(
                f"parameters are spread over the devices {', '.join(devices)}; move the model to one device"
            )
        self.device = self.parameters[0].device
        self.dtype = torch.float32
        for p in self.parameters:
            self.dtype = torch.promote_types(self.dtype, p.dtype)
        self.sizes = [p.numel() for p in self.parameters]

    @cached_property
    def size(self) -> int:
        """Length P of the flat vectors."""
        return sum(self.sizes)

    def flatten(self, tensors: Iterable[Tensor]) -> Tensor:
        """Tensors in the parameters' shapes -> vector [P]."""
        dense = (t.to_dense() if t.is_sparse else t for t in tensors)
        return torch.cat([t.detach().reshape(-1).to(self.dtype) for t in dense])

    def values(self) -> Tensor:
        """The parameters as a new vector [P]."""
        return self.flatten(self.parameters)

    def unflatten(self, vector: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Vector [P] -> tensors in the parameters' shapes, in `dtype` or each parameter's own; views where possible."""
        pieces = zip(vector.split(self.sizes), self.parameters, strict=True)
        return [piece.view(p.shape).to(dtype or p.dtype) for piece, p in pieces]

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Vector [P] -> tensors by parameter name, in each parameter's own dtype."""
        return dict(zip(self.names, self.unflatten(vector), strict=True))

    def stored(self, vector: Tensor) -> Tensor:
        """The vector [P] as the parameters would hold it, rounded to their dtypes."""
        if all(p.dtype == self.dtype for p in self.parameters):
            return vector
        return self.flatten(self.unflatten(vector))

    def length_of_step(self, vector: Tensor) -> float | None:
        """How far a vector [P] is from the parameters once it is stored; None where it does not fit in their dtypes."""
        stored = self.stored(vector)
        length = float((stored - self.values()).norm())
        return length if math.isfinite(length) or bool(stored.isfinite().all()) else None

    def write(self, vector: Tensor) -> None:
        """Make the vector [P] the parameters' values."""
        with torch.no_grad():
            for p, value in zip(self.parameters, self.unflatten(vector), strict=True):
                p.copy_(value)

    def versions(self) -> "Versions":
        """What the parameters are now, which differs when one is written in whatever way, or replaced."""
        return Versions(self.parameters)


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Versions:
    """What tensors were at one moment, to tell later whether they still are.

    torch counts the writes into a tensor, but not those that go through its `.data` or through an array that shares its
    memory; where values are kept, these are compared as well, bit for bit, so that NaN equals itself.

    Args:
        tensors: at this moment.
        values: keep their values. Without, only writes that torch counts are seen.
    """

    def __init__(self, tensors: Iterable[Tensor], values: bool = True):
        self._tensors = list(tensors)
        self._marks = self._now()
        self._values = [t.detach().clone() for t in self._tensors] if values else []

    def forget_values(self) -> None:
        """See from now on only the writes that torch counts, as `values=False`."""
        self._values = []

    def hold(self) -> bool:
        """Whether the tensors are what they were."""
        if self._marks != self._now():
            return False
        if any(value.is_cuda for value in self._values[:1]) and torch.cuda.is_current_stream_capturing():
            return True  # nothing may be read back while a graph is captured
        pairs = zip(self._values, self._tensors, strict=False)
        return all(torch.equal(_bits(before), _bits(now.detach())) for before, now in pairs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Versions) or self._marks != other._marks:
            return False
        pairs = zip(self._values, other._values, strict=False)
        return all(torch.equal(_bits(before), _bits(now)) for before, now in pairs)

    __hash__ = None  # type: ignore[assignment]

    def _now(self) -> list[tuple[int, int]]:
        return [_mark(t) for t in self._tensors]


def _mark(tensor: Tensor) -> tuple[int, int]:
    """Writes so far, which are not counted for what inference mode made, and the place in memory, if it is one."""
    try:
        place = tensor.data_ptr()
    except RuntimeError:
        place = 0
    return 0 if tensor.is_inference() else tensor._version, place


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(_BITS[tensor.element_size()])


def _check_parameter(p: nn.Parameter, name: str) -> None:
    if nn.parameter.is_lazy(p):
        raise ValueError(f"parameter {name!r} is not initialised yet; run one forward pass first")
    if isinstance(p, DTensor):
        raise ValueError(f"parameter {name!r} is a DTensor (FSDP, tensor parallelism), which is not supported yet")
    if not p.is_floating_point():
        raise ValueError(f"parameter {name!r} has dtype {p.dtype}; only real floating-point parameters are supported")


def layerwise(model: nn.Module) -> list[dict[str, Any]]:
    """One param group per module that owns parameters directly: weight and bias together, in model order.

    For block-diagonal curvature, where each param group is a block (Zhang et al. 2017). A parameter that several
    modules share goes to the first of them.

    Args:
        model: any module.

    Returns:
        Param groups ``{"params": [...], "name": ...}`` for an optimizer; parameters that do not require a gradient are
        left out.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    groups, seen = [], set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and p not in seen]
        seen.update(own)
        if own:
            groups.append({"params": own, "name": name or type(module).__name__})
    if not groups:
        raise ValueError("no trainable parameter: the model has none that requires a gradient")
    return groups


def by_module(model: nn.Module, names: Sequence[str]) -> list[dict[str, Any]]:
    """One param group per named submodule, with all parameters inside it, in the order of the names.

    For block-diagonal curvature with coarse blocks: encoder and decoder, the layers of an LSTM, the stages of a
    residual network. A parameter that several of the modules share goes to the first of them.

    Args:
        model: any module.
        names: of submodules, as in `model.named_modules()`.

    Returns:
        Param groups ``{"params": [...], "name": ...}`` for an optimizer; parameters that do not require a gradient are
        left out.

    Raises:
        ValueError: there is no such submodule, one lies inside another, one has no trainable parameter of its own, or
            a trainable parameter of the model lies in none of them.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(
                f"{type(model).__name__} has no submodule {name!r}; it has {', '.join(filter(None, modules))}"
            )
        inside = [other for other in names if other != name and other.startswith(f"{name}.")]
        if inside or list(names).count(name) > 1:
            raise ValueError(f"submodule {(inside or [name])[0]!r} lies inside {name!r}: their blocks would overlap")
    groups, seen = [], set()
    for name in names:
        own = [p for p in modules[name].parameters() if p.requires_grad and p not in seen]
        seen.update(own)
        if not own:
            raise ValueError(f"submodule {name!r} has no trainable parameter of its own")
        groups.append({"params": own, "name": name})
    left = [name for name, p in model.named_parameters() if p.requires_grad and p not in seen]
    if left:
        raise ValueError(f"in none of the named submodules: {', '.join(left)}; name theirs too, or freeze them")
    return groups
