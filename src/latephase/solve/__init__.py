"""The mathematics of second-order steps as pure functions of vectors and numbers.

Nothing here knows a model, a loss or an optimizer: the conjugate gradients see an operator, the rules see numbers. The
module imports nothing else of the package.
"""

from .backtracking import backtrack, iteration_grid
from .conjugate_gradient import NONPOSITIVE_CURVATURE as NONPOSITIVE_CURVATURE
from .conjugate_gradient import STOPPING as STOPPING
from .conjugate_gradient import conjugate_gradient
from .damping import levenberg_marquardt, reduction_ratio, resolution
from .damping import quotient as quotient
from .direct import FACTORIZATIONS as FACTORIZATIONS
from .direct import SIDES as SIDES
from .direct import TRIALS as TRIALS
from .direct import DirectSolve, LeastSquares
from .direct import digits_left as digits_left
from .line_search import LineSearchResult, armijo
from .quasi_newton import UPDATES as UPDATES
from .quasi_newton import Correction, correction
from .result import CGResult
from .stopping import CGStatus
from .wolfe import WolfeResult, WolfeStatus, wolfe

__all__ = [
    "CGResult",
    "CGStatus",
    "Correction",
    "DirectSolve",
    "LeastSquares",
    "LineSearchResult",
    "WolfeResult",
    "WolfeStatus",
    "armijo",
    "backtrack",
    "conjugate_gradient",
    "correction",
    "iteration_grid",
    "levenberg_marquardt",
    "reduction_ratio",
    "resolution",
    "wolfe",
]
