"""What one step leaves to the next: damping, start of conjugate gradients, the preconditioner's estimate."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, is_tensor
from torch.utils._pytree import tree_leaves

from ..curvature import Linearization
from ..curvature.preconditioners import Preconditioner
from ..curvature.traces import MAX_TRACES
from ..objective import Objective
from ..parameters import ParameterSpace


class Carried:
    """A view of an optimizer's state; everything lives there, so that a run that is resumed takes the same steps.

    The start of conjugate gradients is kept per parameter, all else with the first one.

    Args:
        state: the optimizer's.
        groups: its param groups, with at least one parameter.
    """

    def __init__(self, state: dict[Any, Any], groups: Sequence[Mapping[str, Any]]):
        self._state = state
        self._key = next(p for group in groups for p in group["params"])
        self._initial_damping: float = groups[0]["damping"]

    @property
    def _first(self) -> Mapping[str, Any]:
        """What is kept with the first parameter; reading it makes no entry."""
        return self._state.get(self._key, {})

    def _keep(self, name: str, value: Any) -> None:
        self._state[self._key][name] = value

    @property
    def damping(self) -> float:
        """Lambda of the next step, adapted or initial."""
        return self._first.get("damping", self._initial_damping)

    @damping.setter
    def damping(self, value: float) -> None:
        self._keep("damping", float(value))

    def count_rise(self, rose: bool) -> int:
        """How many steps in a row the damping has risen, this one included."""
        rises = self._first.get("rises", 0) + 1 if rose else 0
        self._keep("rises", rises)
        return rises

    @property
    def iterations(self) -> int | None:
        """Iterations of conjugate gradients in the last step, the most of any block; None before the first."""
        return self._first.get("iterations")

    @iterations.setter
    def iterations(self, value: int) -> None:
        self._keep("iterations", value)

    def start(self, space: ParameterSpace) -> Tensor | None:
        """The last solution of conjugate gradients [P], zero for parameters that have none; None if none has one."""
        if not any("x0" in self._state.get(p, {}) for p in space.parameters):
            return None
        return space.flatten([self._state.get(p, {}).get("x0", torch.zeros_like(p)) for p in space.parameters])

    def keep_start(self, space: ParameterSpace, solution: Tensor | None) -> None:
        """Keep a solution [P] in the dtype of the flat vectors; None forgets the last one."""
        for p in space.parameters:
            self._state.get(p, {}).pop("x0", None)
        if solution is not None:
            for p, x in zip(space.parameters, space.unflatten(solution, space.dtype), strict=True):
                self._state[p]["x0"] = x

    def estimate(self, method: Preconditioner, curved: Linearization, blocks: list[int]) -> dict[str, Tensor]:
        """The preconditioner's estimate, made anew when it is as old as the method allows, or not of this method.

        What another method or other blocks left here, or a state from before owners were kept, is no estimate of it.
        """
        kept, owner = self._first.get("preconditioner"), _owner(method)
        if kept is None or kept.get("owner") != owner or kept["age"] >= method.every or kept["blocks"] != blocks:
            kept = {"age": 0, "blocks": blocks, "estimate": method.estimate(curved, blocks), "owner": owner}
        self._keep("preconditioner", kept | {"age": kept["age"] + 1})
        return kept["estimate"]

    def forget_estimate(self) -> None:
        """Let the next step estimate anew."""
        self._state.get(self._key, {}).pop("preconditioner", None)

    def saw(self, objective: Objective) -> bool:
        """Whether data of this form came before, so that a trace of it pays."""
        return _form(objective) in self._first.get("forms", [])

    def remember(self, objective: Objective) -> None:
        """Keep the form of the data."""
        form, known = _form(objective), self._first.get("forms", [])
        if form not in known:
            self._keep("forms", [*known, form][-MAX_TRACES:])


def restore_dtypes(state: dict[Any, Any], groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> None:
    """Give loaded vectors their own dtype back: torch casts what it loads to the parameter's, which may be narrower.

    Args:
        state: the optimizer's, loaded.
        groups: its param groups.
        saved: the state dict that was loaded.
    """
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    own = [p for group in groups for p in group["params"]]
    for index, p in zip(indices, own, strict=True):
        entry = saved["state"].get(index, {})
        if "x0" in entry:
            state[p]["x0"] = entry["x0"].to(p.device, copy=True)
        if "preconditioner" in entry:
            estimate = entry["preconditioner"]["estimate"]
            copies = {name: tensor.to(p.device, copy=True) for name, tensor in estimate.items()}
            state[p]["preconditioner"]["estimate"] = copies


def _form(objective: Objective) -> int:
    """A number for the shapes of an objective's inputs: loading a torch optimizer's state mangles anything else."""
    leaves = [leaf for chunk in objective.chunks for leaf in tree_leaves(chunk.inputs) if is_tensor(leaf)]
    return zlib.crc32(repr(sorted({tuple(leaf.shape) for leaf in leaves})).encode())


def _owner(method: Preconditioner) -> int:
    """A number for a method and its settings."""
    return zlib.crc32(repr((type(method).__qualname__, sorted(vars(method).items()))).encode())
