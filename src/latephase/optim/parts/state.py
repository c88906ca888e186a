"""What one step leaves to the next: damping, start of conjugate gradients, the preconditioner's estimate."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, is_tensor
from torch.utils._pytree import tree_leaves

from ...curvature import MAX_TRACES, Linearization, Preconditioner
from ...objective import Objective
from ...parameters import ParameterSpace
from .estimates import owner_of
from .saved import Check, fields, like_parameter, number, numbers, truth, whole, wholes
from .target_ratio import TargetRatio


class Carried:
    """A view of an optimizer's state; everything lives there, so that a run that is resumed takes the same steps.

    The start of conjugate gradients is kept per parameter, all else with the first one.

    Args:
        state: the optimizer's.
        groups: its param groups, with at least one parameter.
        damping: lambda before one is kept.
    """

    def __init__(self, state: dict[Any, Any], groups: Sequence[Mapping[str, Any]], damping: float):
        self._state = state
        self._owner = next(p for group in groups for p in group["params"])
        self._initial_damping = damping

    @property
    def _first(self) -> Mapping[str, Any]:
        """What is kept with the first parameter; reading makes no entry."""
        return self._state.get(self._owner, {})

    def _keep(self, **values: Any) -> None:
        """Keep values with the first parameter."""
        self._state.setdefault(self._owner, {}).update(values)

    @property
    def damping(self) -> float:
        """Lambda of the next step, adapted or initial."""
        return self._first.get("damping", self._initial_damping)

    @damping.setter
    def damping(self, value: float) -> None:
        self._keep(damping=float(value))

    def count_rise(self, rose: bool) -> int:
        """How many steps in a row the damping has risen, this one included."""
        rises = self._first.get("rises", 0) + 1 if rose else 0
        self._keep(rises=rises)
        return rises

    @property
    def iterations(self) -> int | None:
        """Iterations of conjugate gradients in the last step, the most of any block; None before the first."""
        return self._first.get("iterations")

    @iterations.setter
    def iterations(self, value: int) -> None:
        self._keep(iterations=value)

    @property
    def late(self) -> bool:
        """Whether the second stage of `TargetRatio` has begun."""
        return self._first.get("late", False)

    def follow(self, damping: float, rule: TargetRatio) -> None:
        """Count a step of `TargetRatio` with the damping that it leaves."""
        dampings = [*self._first.get("dampings", []), damping][-rule.window :]
        steps = self._first.get("followed", 0) + 1
        self._keep(dampings=dampings, followed=steps, late=self.late or rule.turns(dampings, steps))

    @property
    def losses(self) -> list[float]:
        """The last losses of `NonMonotone`, that at the end of the last step last."""
        return self._first.get("losses", [])

    @losses.setter
    def losses(self, value: list[float]) -> None:
        self._keep(losses=value)

    @property
    def moments(self) -> int:
        """How many steps in a row the start has been kept as a momentum."""
        return self._first.get("moments", 0)

    @moments.setter
    def moments(self, value: int) -> None:
        self._keep(moments=value)

    def start(self, space: ParameterSpace) -> Tensor | None:
        """The last solution of conjugate gradients [P], zero for parameters that have none; None if none has one."""
        kept = [self._state.get(p, {}).get("x0") for p in space.parameters]
        if all(x is None for x in kept):
            return None
        pairs = zip(kept, space.parameters, strict=True)
        return space.flatten([torch.zeros_like(p) if x is None else x for x, p in pairs])

    def keep_start(self, space: ParameterSpace, solution: Tensor | None) -> None:
        """Keep a solution [P] in the dtype of the flat vectors; None forgets the last one."""
        for p in space.parameters:
            self._state.get(p, {}).pop("x0", None)
        if solution is not None:
            for p, x in zip(space.parameters, space.unflatten(solution, space.dtype), strict=True):
                self._state.setdefault(p, {})["x0"] = x

    def estimate(self, method: Preconditioner, curved: Linearization, blocks: list[int]) -> dict[str, Tensor]:
        """The preconditioner's estimate, made anew when it is too old, another method's, or of other blocks."""
        kept, owner = self._first.get("preconditioner"), owner_of(method)
        # One without an owner was saved by an earlier release, and was looked at when it was loaded.
        foreign = kept is not None and kept.get("method", owner) != owner
        if kept is None or foreign or kept["age"] >= method.every or kept["blocks"] != blocks:
            kept = {"age": 0, "blocks": blocks, "estimate": method.estimate(curved, blocks), "method": owner}
        self._keep(preconditioner=kept | {"age": kept["age"] + 1, "method": owner})
        return kept["estimate"]

    def forget_estimate(self) -> None:
        """Let the next step estimate anew."""
        self._state.get(self._owner, {}).pop("preconditioner", None)

    def saw(self, objective: Objective) -> bool:
        """Whether data of this form came before, so that a trace of it pays."""
        return _form(objective) in self._first.get("forms", [])

    def remember(self, objective: Objective) -> None:
        """Keep the form of the data."""
        form, known = _form(objective), self._first.get("forms", [])
        if form not in known:
            self._keep(forms=[*known, form][-MAX_TRACES:])


def checks() -> dict[str, Check]:
    """What is checked of the state of each parameter in a state dict of `HessianFree`, by key."""
    return {
        "damping": number,
        "rises": whole,
        "iterations": whole,
        "moments": whole,
        "dampings": numbers,
        "losses": numbers,
        "followed": whole,
        "late": truth,
        "forms": wholes,
        "x0": like_parameter,
        "preconditioner": lambda where, value, _: fields(where, value, ("age", "blocks", "estimate"), ("method",)),
    }


def _form(objective: Objective) -> int:
    """A number for the shapes of an objective's inputs: loading a torch optimizer's state mangles anything else."""
    leaves = [leaf for chunk in objective.chunks for leaf in tree_leaves(chunk.inputs) if is_tensor(leaf)]
    return zlib.crc32(repr(sorted({tuple(leaf.shape) for leaf in leaves})).encode())
