"""What a trace is valid for: everything outside its inputs that the traced computation may have read."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any

import torch
import torch.nn.functional as functions_of_torch
import torch.nn.modules.module as module_of_torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ...objective import Objective
from ..chunk_task import ChunkTask
from .class_reads import class_attributes, names_reached, of_class
from .description import Reader, layout_of
from .operations import CannotTrace
from .watching import watch

_OWN = ("_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs", "_compiled_call_impl")
"""Attributes of a module that are read otherwise, (those of recurrent layers) are its parameters once more, or do not
count since passes run uncompiled."""
_HOOKS_OF_ALL = tuple(
    name for name, value in vars(module_of_torch).items() if name.startswith("_global_") and isinstance(value, dict)
)
"""Torch's tables of the hooks that run at every module, by name."""
_FUNCTIONS = dict(vars(functions_of_torch))


def signature(task: ChunkTask) -> tuple[Hashable, str | None]:
    """A key that is equal for two tasks, of any objectives, exactly if one trace serves both; and what it cannot see.

    It holds which tensors are the same ones, and shapes, strides, dtypes and devices of data, parameters and buffers;
    the structure of the model with the train mode and every plain attribute of each submodule; the code of its methods,
    of the loss and of the forward function, and what they captured or read from globals by value, at any depth that
    Python shows (`reach`), or the version of packages that are watched instead (`watching`); the trainable set; and
    torch's settings that change what an operator does. What it cannot see (a clock, a file, a function in C) is named
    beside it and left to the comparison with the eager loss, see `cache`.

    Raises:
        CannotTrace: random numbers may be drawn outside torch, or there is too much to describe.
    """
    reader = Reader(task.objective.model)
    try:
        key = _key(reader, task)
        return (key, watch.look() if reader.watched else None), reader.unseen
    except RecursionError as error:
        raise CannotTrace("what the model or the loss reads is nested too deeply to be described") from error


def _key(reader: "Reader", task: ChunkTask) -> Hashable:
    objective, chunk = task.objective, task.chunk
    leaves, structure = tree_flatten((chunk.inputs, chunk.targets))
    scripted = [type(x).__name__ for x in objective.model.modules() if isinstance(x, torch.jit.ScriptModule)]
    reader.opaque = scripted[0] if scripted else None
    model = [
        (name, reader.kind_of(module), reader.describe(_own_attributes(module)))
        for name, module in objective.model.named_modules()
    ]
    places = [
        (name, key, layout_of(tensor), tensor.requires_grad, reader.number(tensor))
        for name, module in objective.model.named_modules(remove_duplicate=False)
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    ]
    return (
        (task.hessian, task.dtype, str(structure)),
        tuple(reader.describe(leaf) for leaf in leaves),
        tuple(task.space.names),
        tuple(model),
        tuple(places),
        tuple((path, reader.describe(function)) for path, function in _methods(objective.model)),
        reader.describe(objective.program.loss),
        reader.describe(objective.program.forward),
        tuple((name, reader.describe(what)) for name, what in _put_into_torch()),
        _torch_settings(task.space.device.type),
    )


def held_tensors(objective: Objective) -> dict[str, Tensor]:
    """Tensors outside parameters, buffers and data that the computation may read, by where they hang.

    They are attributes of submodules, and what loss and forward function hold or captured.
    """
    found: dict[str, Tensor] = {}
    reader = Reader(objective.model)

    def keep(path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[path] = value

    for name, module in objective.model.named_modules():
        for path, value in reader.walk(_own_attributes(module), f"model.{name}"):
            keep(path, value)
    for path, function in _methods(objective.model):
        for inner, value in reader.walk(function, path):
            keep(inner, value)
    for path, value in (
        *reader.walk(objective.program.loss, "loss"),
        *reader.walk(objective.program.forward, "forward"),
        *(found for name, what in _put_into_torch() for found in reader.walk(what, name)),
    ):
        keep(path, value)
    return found


def _methods(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The methods that a forward pass may run, of the classes that are not torch's."""
    kinds = {type(module): None for module in model.modules()}
    names = names_reached(set(kinds))
    for kind in kinds:
        yield from of_class(kind, names=names)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """What hangs at a module beside parameters, buffers and submodules: its own, and plain attributes of its class."""
    if "_orig_mod" in module._modules and isinstance(
        module._modules["_orig_mod"], nn.Module
    ):  # what torch.compile put around another
        return {}
    return class_attributes(type(module)) | {
        key: value for key, value in vars(module).items() if key not in _OWN and _holds(value)
    }


def _put_into_torch() -> list[tuple[str, Any]]:
    """The hooks of all modules, where there are any, and what stands in place of functions of torch's."""
    tables = ((name, getattr(module_of_torch, name)) for name in _HOOKS_OF_ALL)
    found = [(name, tuple(table.values())) for name, table in tables if table]
    functions = vars(functions_of_torch)
    if functions == _FUNCTIONS:
        return found
    return found + [(name, value) for name, value in functions.items() if _FUNCTIONS.get(name) is not value]


def _holds(value: Any) -> bool:
    """Whether there is something in it: a module has a dozen empty tables of hooks."""
    return type(value) not in (dict, OrderedDict) or bool(value)


def _torch_settings(device: str) -> Hashable:
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return (
        torch.get_default_dtype(),
        autocast,
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.enabled,
        torch.backends.mkldnn.enabled,
    )
