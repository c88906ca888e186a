"""What a step asks of ranks: one fate, equal settings and parameters, and to know of each other."""

import contextlib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ...objective import Local, Objective, ProcessGroup, Reduce
from ...parameters import ParameterSpace
from .part import Part, names_of

OWN = ("params", "forms")
"""Entries of param groups that a rank has for itself: its tensors, and the shapes of its data."""


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
        space: the parameters, which are compared where there is something kept.
        damping: of this step.
        kept: of the optimizer's state, by name: at its first step, and the first after loading. Default none.
        block_group: ranks that share blocks.

    Raises:
        ValueError: on every rank alike, naming what differs between which ranks.
    """

    def named() -> dict[str, Any]:
        found: dict[str, Any] = {}
        if kept is not None:
            found |= {**dict(zip(space.names, space.parameters, strict=True)), **kept}
        for number, group in enumerate(optimizer.param_groups):
            where = f" of param group {number}" if len(optimizer.param_groups) > 1 else ""
            for name, value in group.items():
                if isinstance(value, Part):
                    found[f"{name}{where}"] = value.kind
                    fields = names_of(type(value))
                    found |= {f"{name}.{field}{where}": setting(getattr(value, field)) for field in fields}
                elif name not in OWN:
                    found[f"{name}{where}"] = setting(value)
        found["damping"] = damping
        roles = [next(i for i, other in enumerate(objectives) if other is each) for each in objectives]
        found["roles of the objectives"] = roles
        for number in sorted(set(roles)):
            where = f" of objective {number}" if number else ""
            loss = objectives[number].program.loss
            found[f"loss{where}"] = _described(loss)
            found[f"weight_decay{where}"] = objectives[number].weight_decay.of(space.parameters)
            if kept is not None and isinstance(loss, nn.Module):
                found |= {f"{name} of the loss{where}": x for name, x in loss.state_dict().items()}
        return found

    objectives[0].reduce.compare(named)
    of_blocks(block_group).compare(named)


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
