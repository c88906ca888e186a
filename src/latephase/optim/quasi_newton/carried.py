"""What one quasi-Newton step leaves to the next: the inverse Hessian, how often it was updated, the last decrease."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...objective import available
from ...parameters import ParameterSpace
from ..parts import Carried, Check, array, number, whole, wholes


class QuasiNewtonCarried(Carried):
    """The view of an optimizer's state; everything is kept with the first parameter.

    Args:
        state: the optimizer's.
        groups: its param groups, with at least one parameter.
    """

    def __init__(self, state: dict[Any, Any], groups: Sequence[Mapping[str, Any]]):
        super().__init__(state, groups, 0.0)
        self._all = [p for group in groups for p in group["params"]]

    def inverse(self, space: ParameterSpace) -> Tensor | None:
        """The inverse Hessian H [P, P]; None where there is none, or that of other parameters."""
        found = self._first.get("inverse_hessian")
        if found is None or self._first.get("places") != self._places(space):
            return None
        return found if (found.device, found.dtype) == (space.device, space.dtype) else None

    @property
    def updates(self) -> int:
        """How many updates H has had since it was the identity."""
        return self._first.get("updates", 0)

    @property
    def decrease(self) -> float | None:
        """By how much the last step lowered the loss; None where no step since the last restart did."""
        return self._first.get("decrease")

    @decrease.setter
    def decrease(self, value: float) -> None:
        self._keep(decrease=value)

    def begin(self, space: ParameterSpace) -> Tensor:
        """Keep the identity as H.

        Raises:
            MemoryError: there is no room for P^2 numbers; says how many bytes, and what to do.
        """
        self.forget()
        size = space.size**2 * space.dtype.itemsize
        if size > (free := available(space.device)):
            raise MemoryError(
                f"the inverse Hessian of {space.size:,} parameters is {size / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB "
                "are free; take torch.optim.LBFGS or HessianFree, which keep no matrix, or train fewer parameters"
            )
        identity = torch.eye(space.size, dtype=space.dtype, device=space.device)
        self._keep(inverse_hessian=identity, places=self._places(space), updates=0)
        return identity

    def count_update(self) -> None:
        """Count an update of H."""
        self._keep(updates=self.updates + 1)

    def forget(self) -> None:
        """Drop H."""
        for name in ("inverse_hessian", "places", "updates", "decrease"):
            self._state.get(self._all[0], {}).pop(name, None)

    def tensors(self, space: ParameterSpace) -> dict[str, Tensor]:
        """What must be equal on all ranks, by name."""
        found = self.inverse(space)
        return {} if found is None else {"inverse Hessian": found}

    def _places(self, space: ParameterSpace) -> list[int]:
        """Which of the optimizer's parameters the rows of H belong to, and how many each has."""
        sizes = {id(p): size for p, size in zip(space.parameters, space.sizes, strict=True)}
        return [sizes.get(id(p), 0) for p in self._all]


CHECKS: dict[str, Check] = {
    "inverse_hessian": lambda where, value, _: array(where, value, (None, None)),
    "places": wholes,
    "updates": whole,
    "decrease": number,
}
"""What is checked of the state of each parameter in a state dict, by key."""


def check_inverse(where: str, entry: Mapping[str, Any]) -> None:
    """Check that an inverse Hessian has the shape that its parameters say, and is one of no others.

    Raises:
        ValueError: naming the entry.
    """
    if "inverse_hessian" not in entry:
        return
    if "places" not in entry:
        raise ValueError(f"{where} has an 'inverse_hessian' and no 'places', which say whose it is")
    size = sum(entry["places"])
    array(f"{where}['inverse_hessian']", entry["inverse_hessian"], (size, size))
