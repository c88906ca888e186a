"""Preconditioners of the Hessian-free step, by name or as objects with settings of their own.

Which of them helps is a matter of the network. Iterations of conjugate gradients to |r|/|b| = 1e-3, geometric means
over systems with damping 1e-1 and 1e-3 (perceptrons: 1e-5 too), early and late in training, each method with its
defaults (K-FAC with exact damping):

    network                                     none  Fisher  GGN  Nystrom  K-FAC
    perceptrons, inputs of unequal scales (36)   144      96   97      108     68
    autoencoder of small digits (4)               10      10   11       10      9
    small convolutional network (4)               29      35   38       10     60
    one layer of attention (4)                    95     150  145       34    202

Diagonals and K-FAC undo bad scales of inputs and layers. Where weights are shared over positions they do harm, since
they leave out what the positions have in common; Nystrom's method did none on these, and costs 21 products every tenth
step.
"""

from .base import Apply, Estimate, Preconditioner
from .base import check_whole as check_whole
from .base import diagonal_inverse as diagonal_inverse
from .base import floored as floored
from .empirical_fisher import EmpiricalFisher
from .ggn_diagonal import GGNDiagonal
from .kfac import Kronecker
from .kfac import blocks_of as blocks_of
from .kfac import factored as factored
from .kronecker_factors import WEIGHT_SHARING as WEIGHT_SHARING
from .nystrom import Nystrom

__all__ = [
    "PRECONDITIONERS",
    "Apply",
    "EmpiricalFisher",
    "Estimate",
    "GGNDiagonal",
    "Kronecker",
    "Nystrom",
    "Preconditioner",
    "preconditioner",
]

PRECONDITIONERS: dict[str, type[Preconditioner]] = {
    "empirical_fisher": EmpiricalFisher,
    "ggn_diagonal": GGNDiagonal,
    "nystrom": Nystrom,
    "kfac": Kronecker,
}
"""The methods by name."""


def preconditioner(given: str | Preconditioner | Apply | None) -> Preconditioner | Apply | None:
    """The preconditioner that is meant.

    Args:
        given: a name, for the method with its default settings; an object or a function r -> M^-1 r, which is
            returned; or None for none.

    Raises:
        ValueError: no method has this name.
        TypeError: neither.
    """
    if given is None or isinstance(given, Preconditioner) or (callable(given) and not isinstance(given, type)):
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
