"""What a step asks of ranks: one fate, equal settings and parameters, and to know of each other."""

import contextlib
import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ...objective import Local, Objective, ProcessGroup, Reduce, Residuals
from ...parameters import ParameterSpace
from .part import Part, names_of

OWN = ("params", "forms")
"""Entries of param groups that a rank has for itself: its tensors, and the shapes of its data."""

NEW_START = "new start (the first step, or the first after a state was loaded, the damping set, or a step failed)"
"""Whether parameters and state are compared, in which the ranks must agree, too."""


def of_blocks(block_group: dist.ProcessGroup | None) -> Reduce:
    """The ranks that share blocks."""
    return Local() if block_group is None else ProcessGroup(block_group)


def one_fate(first: Objective, block_group: dist.ProcessGroup | None) -> contextlib.ExitStack:
    """Opened: from here to its exit an exception of one rank reaches all that it works with."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(first.reduce.together())
        stack.enter_context(of_blocks(block_group).together())
        return stack.pop_all()


def check_groups_of_ranks(objective: Objective, block_group: dist.ProcessGroup | None) -> None:
    """Check that no two ranks share both data and blocks.

    Raises:
        ValueError: they do: the blocks' ranks hold the same data, the objective's ranks different data.
    """
    if block_group is None or objective.process_group is None:
        return
    groups = (block_group, objective.process_group)
    both = set.intersection(*(set(dist.get_process_group_ranks(group)) for group in groups))
    if len(both) > 1:
        raise ValueError(
            f"ranks {', '.join(map(str, sorted(both)))} are in block_group and in the objective's process_group (that "
            "of DistributedDataParallel where none is given): block_group is for ranks that hold the same data, "
            "process_group for ranks that share the data out. Leave one of them out, or give groups that have one rank "
            "in common"
        )


def notice_plain_module(objective: Objective, block_group: dist.ProcessGroup | None, stacklevel: int) -> None:
    """Warn where there are several ranks and the objective knows of none."""
    if objective.process_group is not None or objective.alone or block_group is not None:
        return
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    warnings.warn(
        f"torch.distributed has {dist.get_world_size()} ranks, but the objective knows of none: each rank takes steps "
        "of its own on its own data, and their parameters part. Give it process_group=torch.distributed.group.WORLD, "
        "or a model in DistributedDataParallel. Where each rank is to train a model of its own, say so: "
        "process_group=torch.distributed.GroupMember.NON_GROUP_MEMBER",
        stacklevel=stacklevel + 1,
    )


def compare(
    optimizer: Optimizer,
    objectives: Sequence[Objective],
    space: ParameterSpace,
    damping: float,
    kept: Mapping[str, Any] | None,
    block_group: dist.ProcessGroup | None = None,
) -> None:
    """Check that all ranks are about to take the same step, in one collective of fixed shape for each group.

    Args:
        optimizer: its options are compared at every step: a scheduler may have parted them.
        objectives: by role; what they add up, and which of them are one.
        space: the parameters, which are compared where there is something kept; so are the model's modes.
        damping: of this step.
        kept: of the optimizer's state, by name: at a new start; None at any other step.
        block_group: ranks that share blocks.

    Raises:
        ValueError: on every rank alike, naming what differs between which ranks.
    """

    def named() -> dict[str, Any]:
        found = _options_of(optimizer) | {"damping": damping, NEW_START: kept is not None}
        if kept is not None:
            found |= {**dict(zip(space.names, space.parameters, strict=True)), **kept}
            found |= _loss_tensors_of(objectives)
            found["modules in training mode"] = _modes_of(objectives[0].model)
        return found | _functions_of(objectives, space)

    objectives[0].reduce.compare(named)
    of_blocks(block_group).compare(named)


def _options_of(optimizer: Optimizer) -> dict[str, Any]:
    """The options of all param groups by name, the fields of their parts one by one."""
    groups = optimizer.param_groups
    found: dict[str, Any] = {"optimizer": getattr(optimizer, "_kind", "") or type(optimizer).__name__}
    found["parameters in each param group"] = [len(group["params"]) for group in groups]
    for number, group in enumerate(groups):
        where = f" of param group {number}" if len(groups) > 1 else ""
        for name, value in group.items():
            if isinstance(value, Part):
                found[f"{name}{where}"] = value.kind
                found |= {f"{name}.{field}{where}": setting(getattr(value, field)) for field in names_of(type(value))}
            elif name not in OWN:
                found[f"{name}{where}"] = setting(value)
    return found


def _functions_of(objectives: Sequence[Objective], space: ParameterSpace) -> dict[str, Any]:
    """What the objectives add up, by name, as far as it can be told from settings."""
    roles = [next(i for i, other in enumerate(objectives) if other is each) for each in objectives]
    found: dict[str, Any] = {"roles of the objectives": roles}
    for number in sorted(set(roles)):
        where, program = f" of objective {number}" if number else "", objectives[number].program
        found[f"loss{where}"] = _described(program.loss)
        if isinstance(program, Residuals):
            found[f"weights of the terms{where}"] = program.weights
        found[f"weight_decay{where}"] = objectives[number].weight_decay.of(space.parameters)
    return found


def _loss_tensors_of(objectives: Sequence[Objective]) -> dict[str, Tensor]:
    """The parameters and buffers of the objectives' losses, by name."""
    found: dict[str, Tensor] = {}
    for number, objective in enumerate(objectives):
        where, loss = f" of objective {number}" if number else "", objective.program.loss
        if isinstance(loss, nn.Module) and all(objective is not other for other in objectives[:number]):
            found |= {f"{name} of the loss{where}": tensor for name, tensor in loss.state_dict().items()}
    return found


def _modes_of(model: nn.Module) -> str:
    """Which modules are in training mode: all, none, or so many and a checksum of their names."""
    modes = {name: module.training for name, module in model.named_modules()}
    training = [name for name, mode in modes.items() if mode]
    if len(training) in (0, len(modes)):
        return "all" if training else "none"
    return f"{len(training)} of {len(modes)}, with checksum {zlib.crc32(' '.join(training).encode()):08x}"


def state_of(optimizer: Optimizer, space: ParameterSpace) -> dict[str, Any]:
    """The tensors and numbers that an optimizer keeps of each parameter, by name."""
    return {
        f"{key} of {name}": value
        for p, name in zip(space.parameters, space.names, strict=True)
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, (Tensor, int, float))
    }


def one_seed(objectives: Sequence[Objective], block_group: dist.ProcessGroup | None) -> None:
    """Give the ranks that share blocks the first one's random numbers, so that all see one function."""
    seeds = of_blocks(block_group).gather([each.seed for each in objectives])[0]
    for each, seed in zip(objectives, seeds, strict=True):
        each.seed = seed


def check_same_data(ranks: Reduce, downhill: Tensor) -> None:
    """Check that ranks which share blocks found the same gradient [P], up to rounding.

    Raises:
        ValueError: they did not, so that their data differ.
    """
    norms = ranks.gather(float(downhill.norm()))
    rounding = math.sqrt(torch.finfo(downhill.dtype).eps)
    if any(abs(norm - norms[0]) > rounding * abs(norms[0]) for norm in norms):  # not finite ones are told elsewhere
        raise ValueError(
            "the ranks of block_group must hold the same data: their gradients have the norms "
            f"{', '.join(f'{norm:.6g}' for norm in norms)}"
        )


def setting(value: Any) -> Any:
    """An option as it can be compared: a learning rate may be a tensor, a pair that went through a file is a list."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, (tuple, list)):
        return [setting(each) for each in value]
    plain = value is None or isinstance(value, (bool, int, float, str, torch.dtype, Tensor))
    return value if plain else type(value).__qualname__


def _described(loss: Any) -> str:
    """A loss by name and plain settings."""
    own = vars(loss) if isinstance(loss, nn.Module) else {"reduction": getattr(loss, "reduction", None)}
    settings = {k: v for k, v in own.items() if isinstance(v, (bool, int, float, str)) and not k.startswith("_")}
    settings.pop("training", None)
    return f"{getattr(loss, '__qualname__', type(loss).__qualname__)} {settings}"
