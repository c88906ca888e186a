"""Hessian-free steps."""

from typing import ClassVar, Literal

from ...optim import HessianFree
from ..outline import About
from .newton import BlocksKey, NewtonSteps, OptionsKey


class HessianFreeSteps(NewtonSteps):
    """Go on with Hessian-free steps on batches of `batch_size`, judged on evaluation batches."""

    about: ClassVar = About(
        "Hessian-free", second_order=True, has_rate=False, counts=("gradients", "values", "products")
    )
    optimizer: ClassVar[type] = HessianFree
    kind: Literal["hessian_free"]
    preset: Literal["default", "published", "late_phase", "fixed_rate"] = "default"
    blocks: BlocksKey = "all"
    options: OptionsKey
