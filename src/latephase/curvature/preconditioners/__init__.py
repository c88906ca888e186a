"""Preconditioners of the Hessian-free step, by name or as objects with settings of their own."""

from .base import Apply, Estimate, Preconditioner
from .empirical_fisher import EmpiricalFisher
from .ggn_diagonal import GGNDiagonal
from .kfac import KFAC
from .nystrom import Nystrom

__all__ = [
    "KFAC",
    "PRECONDITIONERS",
    "Apply",
    "EmpiricalFisher",
    "Estimate",
    "GGNDiagonal",
    "Nystrom",
    "Preconditioner",
    "preconditioner",
]

PRECONDITIONERS: dict[str, type[Preconditioner]] = {
    "empirical_fisher": EmpiricalFisher,
    "ggn_diagonal": GGNDiagonal,
    "nystrom": Nystrom,
    "kfac": KFAC,
}
"""The methods by name."""


def preconditioner(given: str | Preconditioner | None) -> Preconditioner | None:
    """The preconditioner that is meant.

    Args:
        given: a name, for the method with its default settings; an object, which is returned; or None for none.

    Raises:
        ValueError: no method has this name.
        TypeError: neither.
    """
    if given is None or isinstance(given, Preconditioner):
        return given
    choices = ", ".join(repr(name) for name in PRECONDITIONERS)
    if not isinstance(given, str):
        hint = "; call the class to make an object of it" if isinstance(given, type) else ""
        raise TypeError(
            f"preconditioner must be None, one of {choices}, or a Preconditioner, got {type(given).__name__}{hint}"
        )
    if given not in PRECONDITIONERS:
        raise ValueError(f"preconditioner must be one of {choices}; got {given!r}")
    return PRECONDITIONERS[given]()
