"""What the minimisation of residuals comes to."""

from dataclasses import dataclass
from typing import Any

CONVERGED = {
    1: "gtol: every column of jac is orthogonal to the residuals within gtol",
    2: "ftol: the cost does not fall by more than ftol of itself any more",
    3: "xtol: the step is shorter than xtol of x",
    4: "ftol and xtol: neither cost nor x changes by more than them any more",
}
"""Endings at a minimum, by status."""
EXHAUSTED, STUCK = 0, -1
"""Status where max_nfev is reached, and where no step lowers the cost."""


@dataclass(frozen=True, repr=False)
class ResidualsResult:
    """The end of `minimize_residuals`; the names are those of `scipy.optimize.least_squares`.

    Arrays are NumPy's where x0 was NumPy's or a list, else torch's, on its device; x has the dtype of x0, the others
    are float64.

    Attributes:
        x: the unknowns [P] of the lowest cost.
        cost: 0.5 sum r^2 there.
        fun: r [N] there.
        jac: dr/dx [N, P] there.
        grad: jac' r [P].
        optimality: largest entry of |grad|, in the unit of the cost over that of x; no test of convergence uses it.
        status: 1 gtol, 2 ftol, 3 xtol, 4 ftol and xtol; 0 where max_nfev was reached; -1 where no step lowers the
            cost although jac says that one should.
        message: the status in words.
        nfev: evaluations of the function, without those for differences.
        njev: evaluations of jac.
    """

    x: Any
    cost: float
    fun: Any
    jac: Any
    grad: Any
    optimality: float
    status: int
    message: str
    nfev: int
    njev: int

    @property
    def success(self) -> bool:
        """Whether one of the tests of convergence holds."""
        return self.status > 0

    def __repr__(self) -> str:
        return (
            f"ResidualsResult(cost={self.cost:.10g}, x={self.x}, status={self.status}, message={self.message!r}, "
            f"optimality={self.optimality:.3g}, nfev={self.nfev}, njev={self.njev})"
        )
