"""Gauss-Newton steps by a direct solve."""

from typing import ClassVar, Literal

from ...optim import Fixed, GaussNewton
from ..outline import About
from .newton import BlocksKey, NewtonSteps, OptionsKey


class GaussNewtonSteps(NewtonSteps):
    """Go on with `latephase.GaussNewton` on all rows, which judge the step, or on batches of `batch_size`.

    A row of J~ counts as the gradient of a row of data: a forward and a backward pass. The factorisation is of no pass
    and counts nothing, as everywhere; only a budget in seconds charges for it.
    """

    about: ClassVar = About("Gauss-Newton", second_order=True, has_rate=False, counts=("gradients", "values"))
    optimizer: ClassVar[type] = GaussNewton
    kind: Literal["gauss_newton"]
    blocks: BlocksKey = "all"
    options: OptionsKey

    def _held_out(self, rows: int) -> int:
        """None where nothing is judged, the damping being fixed, as it is with a momentum; else as for any kind."""
        judged = self.settings["line_search"] or not isinstance(self.settings["damping"], Fixed)
        return super()._held_out(rows) if judged else 0
