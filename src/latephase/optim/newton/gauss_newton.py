"""The Gauss-Newton optimizer: damped least-squares steps by a direct solve."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...parameters import ParameterSpace
from ..parts import Damping, check_number, defaults_of, is_number
from .curvatures import GGN, Armijo, Blocks
from .direct import Direct
from .newton import Newton
from .outcome import Outcome
from .path import Path
from .settings import PARTS, PER_GROUP, part

NAMES = ("lr", "curvature", "solver", "damping", "line_search", "blocks", "momentum")
DEFAULT_SOLVER = Direct()


class GaussNewton(Newton):
    """Damped Gauss-Newton steps, solved directly."""

    _kind = "GaussNewton"
    _NAMES = NAMES

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        curvature: str | GGN | Mapping[str, Any] = "ggn",
        solver: Direct | Mapping[str, Any] = DEFAULT_SOLVER,
        damping: float | Damping | Mapping[str, Any] = 1.0,
        line_search: bool | Armijo | Mapping[str, Any] = False,
        blocks: bool | Blocks | Mapping[str, Any] | None = None,
        momentum: float = 0.0,
        **others: Any,
    ):
        given = locals()
        super().__init__(params, {name: given[name] for name in NAMES}, others)

    @property
    def _momentum(self) -> float:
        return self.param_groups[0]["momentum"]

    def _start(self, space: ParameterSpace) -> Tensor | None:
        start = self._carried.start(space) if self._momentum else None
        return None if start is None else self._momentum * start

    def _keep_start(self, space: ParameterSpace, path: Path, outcome: Outcome) -> None:
        if self._momentum:
            kept = None if outcome.vector is None else path.candidates[outcome.iteration]
            self._carried.keep_start(space, kept)

    def _rate(self, lr: float | Tensor) -> float | Tensor:
        return lr


GaussNewton._OPTIONS = {
    **PER_GROUP,
    **{name: part(name, x) if name in PARTS else x for name, x in defaults_of(GaussNewton, "others").items()},
}
