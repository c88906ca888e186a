"""What one step of K-FAC leaves to the next: damping, last update, factors, the number of steps taken."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, is_tensor
from torch.utils._pytree import tree_map

from ...parameters import ParameterSpace
from ..carried import Carried
from .factors import Factors


class KFACCarried(Carried):
    """The view of an optimizer's state: the last update is kept per parameter, all else with the first one."""

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return self._first.get("steps", 0)

    @property
    def factors(self) -> Factors | None:
        """Averages and inverses of the last step that was taken."""
        return self._first.get("factors")

    def update(self, space: ParameterSpace) -> Tensor | None:
        """The last change of the parameters [P], zero for those that have none; None before the first step."""
        if not any("update" in self._state.get(p, {}) for p in space.parameters):
            return None
        return space.flatten([self._state.get(p, {}).get("update", torch.zeros_like(p)) for p in space.parameters])

    def taken(self, space: ParameterSpace, update: Tensor, factors: Factors) -> None:
        """Keep what a step that was taken leaves; the update in the dtype of the flat vectors."""
        for p, change in zip(space.parameters, space.unflatten(update, space.dtype), strict=True):
            self._state[p]["update"] = change
        self._keep("factors", factors)
        self._keep("steps", self.steps + 1)

    def tensors(self, space: ParameterSpace) -> dict[str, Tensor]:
        """What must be equal on all ranks, by name."""
        update = self.update(space)
        found = {} if update is None else {"last update": update}
        found |= {} if self.factors is None else {f"factor {k}": v for k, v in self.factors["moments"].items()}
        return found


def restore(state: dict[Any, Any], groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> None:
    """Give a loaded state its own dtypes back: torch casts what it loads to the parameter's.

    Args:
        state: the optimizer's, loaded.
        groups: its param groups.
        saved: the state dict that was loaded.
    """
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    own = [p for group in groups for p in group["params"]]
    for index, p in zip(indices, own, strict=True):
        if index in saved["state"]:
            state[p] = tree_map(lambda x, p=p: x.to(p.device, copy=True) if is_tensor(x) else x, saved["state"][index])
