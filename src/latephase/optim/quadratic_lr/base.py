"""The direction that a first-order optimizer proposes, found without moving the parameters."""

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ...parameters import ParameterSpace

_BLIND = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
)
"""Optimizers that read the parameters' values for weight decay only."""

_UNFIT = (torch.optim.Rprop, torch.optim.Adafactor, torch.optim.ASGD)
"""Optimizers whose step is no multiple of `lr`: sizes of its own, a bound by the step's number, a rate from before."""

_SHARED = ("params", "lr")
"""Entries of a param group that a trial of the base replaces."""


def check_base(base: Any, options: Iterable[str]) -> None:
    """Check that an optimizer can propose directions.

    Args:
        base: the optimizer.
        options: names that its param groups are to hold beside its own.

    Raises:
        TypeError: not a torch optimizer, one whose `step` needs a closure or an objective or is no multiple of `lr`, or
            one without `lr` or with an option of one of these names.
        ValueError: a param group's `lr` is not above 0.
    """
    if not isinstance(base, Optimizer):
        raise TypeError(f"base must be a torch.optim.Optimizer, got {type(base).__name__}")
    arguments = list(inspect.signature(type(base).step).parameters.values())[1:]
    needed = [a.name for a in arguments if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    needed += [a.name for a in arguments if a.name == "objective"]  # of this package's own, which take it as a closure
    if needed:
        raise TypeError(
            f"base must be a first-order optimizer whose step() works on .grad alone; {type(base).__name__}.step needs "
            f"{', '.join(needed)}"
        )
    if isinstance(base, _UNFIT):
        raise TypeError(
            f"{type(base).__name__} cannot be the base: its step is no multiple of lr, which the computed rate is to "
            "replace"
        )
    if common := [name for name in options if name in base.defaults]:
        raise TypeError(
            f"{type(base).__name__} cannot be the base: it has an option of its own by the name {common[0]}, which "
            "would share its place in the param groups"
        )
    for index, group in enumerate(base.param_groups):
        if "lr" not in group:
            raise TypeError(f"base must have a learning rate: param group {index} of {type(base).__name__} has no lr")
        if not float(group["lr"]) > 0:
            raise ValueError(
                f"lr of param group {index} of the base must be above 0, since it is the unit of what schedulers set "
                f"later; got {group['lr']!r}"
            )


class Proposal:
    """A direction, and what becomes of the base optimizer if it is taken.

    Attributes:
        direction: d [P], in ascent sign and for a learning rate of one.
    """

    def __init__(self, base: Optimizer, direction: Tensor, state: Mapping[Any, Any], groups: list[dict[str, Any]]):
        self.direction = direction
        self._base, self._state, self._groups = base, state, groups

    def accept(self) -> None:
        """Make the state after the proposal the base optimizer's own."""
        self._base.state.update(self._state)
        for group, moved in zip(self._base.param_groups, self._groups, strict=True):
            group.update(moved)


def propose(base: Optimizer, space: ParameterSpace, gradient: Tensor) -> Proposal:
    """Ask a first-order optimizer for its direction at a gradient; its state stays as it was.

    The base takes its step on stand-ins for the parameters and on a copy of its state, so that nothing has to be put
    back. Reading d off moved parameters, theta - (theta - lr d), would lose the digits by which theta is larger than
    lr d. So the stand-ins are zero and lr is one: d is what they are moved by, to the last bit. That is right for an
    optimizer that does not look at the values. For one that does (weight decay; any class not known here) the stand-ins
    are copies and lr is 2**40, so that their values weigh next to nothing in the sum, and d is right to rounding,
    provided that the base moves by a multiple of lr. What it does with the values is then a part of d: with AdamW, say,
    d includes weight_decay * theta.

    Args:
        base: the optimizer.
        space: its parameters.
        gradient: what the parameters' gradient shall be [P].
    """
    blind = type(base) in _BLIND and not any(group.get("weight_decay") for group in base.param_groups)
    narrow = any(p.dtype == torch.float16 for p in space.parameters)  # which overflows at 65,504
    lr = 1.0 if blind else 2.0**8 if narrow else 2.0**40
    stand_ins: dict[Tensor, Tensor] = {}
    for p, slope in zip(space.parameters, space.unflatten(gradient), strict=True):
        stand_ins[p] = torch.zeros_like(p) if blind else p.detach().clone()
        stand_ins[p].grad = slope if blind else slope.clone()  # an unknown class may write into it
    state, groups = base.state, base.param_groups
    trial = defaultdict(dict, {stand_ins.get(k, k): _copied(v) if k in stand_ins else v for k, v in state.items()})
    try:
        base.state = trial
        base.param_groups = [
            {**group, "params": [stand_ins[p] for p in group["params"] if p in stand_ins], "lr": lr} for group in groups
        ]
        base.step()
        moved, moved_groups = (
            base.state,
            [
                {name: x for name, x in trial.items() if name not in _SHARED and x is not group.get(name)}
                for trial, group in zip(base.param_groups, groups, strict=True)
            ],
        )
    finally:
        base.state, base.param_groups = state, groups
    direction = space.flatten(stand_ins.values())
    direction = direction.neg_() if blind else space.values().sub_(direction).div_(lr)
    own = {stand_in: p for p, stand_in in stand_ins.items()}
    return Proposal(base, direction, {own.get(k, k): v for k, v in moved.items()}, moved_groups)


def _copied(entry: Any) -> Any:
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else copy.deepcopy(x), entry)
