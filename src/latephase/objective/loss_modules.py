"""What a function or an object holds besides its arguments: modules, and tensors, wherever Python shows them."""

import functools
import itertools
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType)

TORCH_LOSSES = "torch.nn.modules.loss"

MOST = 2000
"""Objects that are looked at: a data set among the globals must not cost a step."""


def walk_held(value: Any) -> Iterator[nn.Module | Tensor]:
    """Every module and tensor within reach of a callable, each once; submodules and tensors of modules are not listed.

    Followed are captured variables, defaults, the globals that a function names, what partials and bound methods are
    made of, containers, and attributes of objects: the nearest `MOST` of them.
    """
    seen: set[int] = set()
    waiting = deque([value])
    while waiting and len(seen) < MOST:
        value = waiting.popleft()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (nn.Module, Tensor)):
            yield value
        if not isinstance(value, Tensor):
            waiting.extend(itertools.islice(_parts(value), MOST))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (tuple, list, set, frozenset)):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        if str(value.__module__).split(".")[0] in ("torch", __name__.split(".")[0]):
            return
        yield from (value.__defaults__, value.__kwdefaults__)
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not bound yet
                continue
        yield from (value.__globals__.get(name) for name in _names(value.__code__))
    elif type(value).__module__ == TORCH_LOSSES:
        return
    elif isinstance(value, nn.Module):  # a module of one's own may hold others in plain attributes
        inner = ("_parameters", "_buffers", "_modules")
        yield from (part for key, part in vars(value).items() if key not in inner)
    elif type(value).__module__.split(".")[0] not in ("torch", "numpy", "builtins"):
        yield from vars(value).values() if hasattr(value, "__dict__") else ()


def _names(code: types.CodeType) -> Iterator[str]:
    """The globals that a function names, the functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def moving_buffers(held: Any, model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Buffers that a forward pass may move, if their modules are in training mode, of modules held beside the model.

    Torch's own losses hold class weights in buffers, which no pass moves.

    Returns:
        (module, name of its buffer) by a path.
    """
    own = {id(module) for module in model.modules()}
    found: dict[str, tuple[nn.Module, str]] = {}
    known: set[int] = set()
    for root in walk_held(held):
        for module in root.modules() if isinstance(root, nn.Module) else ():
            fixed = type(module).__module__ == TORCH_LOSSES
            if id(module) in own | known or fixed:
                continue
            known.add(id(module))
            number = len(known) - 1
            found |= {f"{number}.{name}": (module, name) for name, b in module._buffers.items() if b is not None}
    return found
