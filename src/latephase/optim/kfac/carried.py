"""What one step of K-FAC leaves to the next: damping, last update, factors, the number of steps taken."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...curvature import blocks_of
from ...parameters import ParameterSpace
from ..parts import Carried, Check, array, fields, layout, like_parameter, number, size_of, whole, wholes
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
        self._keep(factors=factors, steps=self.steps + 1)

    def tensors(self, space: ParameterSpace) -> dict[str, Tensor]:
        """What must be equal on all ranks, by name."""
        update = self.update(space)
        found = {} if update is None else {"last update": update}
        found |= {} if self.factors is None else {f"factor {k}": v for k, v in self.factors["moments"].items()}
        return found


CHECKS: dict[str, Check] = {
    "damping": number,
    "steps": whole,
    "forms": wholes,
    "update": like_parameter,
    "factors": lambda where, value, _: _check_factors(where, value),
}
"""What is checked of the state of each parameter in a state dict, by key."""


def _check_factors(where: str, kept: Any) -> None:
    """Check averages and inverses of Kronecker factors."""
    fields(where, kept, ("count", "stale", "moments", "inverses"))
    whole(f"{where}['count']", kept["count"])
    whole(f"{where}['stale']", kept["stale"])
    moments, inverses, inside = kept["moments"], kept["inverses"], f"{where}['moments']"
    fields(inside, moments, ("layers", "diagonal"), tuple(moments) if isinstance(moments, Mapping) else ())
    sizes = layout(inside, moments["layers"])
    fields(inside, moments, ("layers", "diagonal", *sizes))
    array(f"{inside}['diagonal']", moments["diagonal"], [None])
    found = {}
    for name, choices in sizes.items():
        found[name] = size_of(moments[name], choices)
        array(f"{inside}[{name!r}]", moments[name], [found[name]] * 2)
    inside, needed = f"{where}['inverses']", {}
    for index, block in enumerate(blocks_of(dict(moments))) if inverses else ():  # none are there before the first
        needed |= {f"{index}.inputs": found[block.inputs]} if block.inputs else {}
        needed[f"{index}.slopes"] = found[block.slopes]
    fields(inside, inverses, tuple(needed))
    for name, size in needed.items():
        array(f"{inside}[{name!r}]", inverses[name], [size, size])
