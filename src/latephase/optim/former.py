"""Options of former releases, whichever optimizer they were of."""

from typing import Any

from . import kfac, newton, quadratic_lr


def in_a_table(optimizer: type, name: str, value: Any) -> str | None:
    """How an option of a former release is written in a study's file; None for a name that never was one's."""
    if issubclass(optimizer, newton.HessianFree):
        return newton.in_a_table(name, value) if name in newton.FORMER else None
    if issubclass(optimizer, kfac.KFAC):
        return kfac.in_a_table(name, value) if name in kfac.FORMER else None
    if issubclass(optimizer, quadratic_lr.QuadraticLearningRate):
        return quadratic_lr.in_a_table(name, value) if name in quadratic_lr.FORMER else None
    return None
