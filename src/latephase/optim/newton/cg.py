"""Conjugate gradients as the solver of a Newton step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...curvature import PRECONDITIONERS, Matvec, Preconditioner
from ...curvature import preconditioner as find_preconditioner
from ...solve import NONPOSITIVE_CURVATURE, STOPPING, conjugate_gradient
from .block_ranks import BlockRanks
from .path import Path, Solver
from .quadratic import Quadratic

FIRST_EXPECTED = 50
"""Iterations that a first step is expected to take at most."""


@dataclass(frozen=True)
class CG(Solver):
    """Conjugate gradients (`solve.conjugate_gradient`); the candidates are iterates on a grid.

    Args:
        max_iter: cap on iterations. Default 250 (Martens 2010).
        stopping: "martens" (default), by the progress of the quadratic model, or "residual".
        tolerance: relative progress per iteration (default 5e-4, Martens 2010), or |r|/|b|.
        warm_start: factor on the last solution where the next run starts. Default 0.95 (Martens and Sutskever 2012). A
            start that is worse than zero is scaled to its best multiple at no cost.
        preconditioner: "empirical_fisher", "ggn_diagonal", "nystrom" or "kfac", or an object of those classes with
            settings of its own (`curvature.preconditioners`); or a callable r [P] -> M^-1 r [P], symmetric positive
            definite, block-diagonal if the curvature is. Default none, as in the paper's experiments.
        nonpositive_curvature: what follows where a direction has none: "truncate" (default), "ignore" or "absolute".
        candidates: "best" (default): choose among the iterates by the evaluation objective (`solve.backtrack`); "last":
            take the last one.
        max_step_norm: candidates with a longer step are scaled back to this length before they are tried. Default none:
            the damping bounds the step.
        on_host: keep the candidates in the host's memory: about 20 vectors of the size of the parameters at 250
            iterations. Default False.

    Raises:
        ValueError: naming the field.
        TypeError: a preconditioner that is none.
    """

    kind: ClassVar[str] = "cg"
    reweighs: ClassVar[bool] = True
    shares: ClassVar[bool] = True
    LOCAL: ClassVar[tuple[str, ...]] = ("preconditioner",)

    max_iter: int = 250
    stopping: str = "martens"
    tolerance: float = 5e-4
    warm_start: float = 0.95
    preconditioner: str | Preconditioner | Matvec | None = None
    nonpositive_curvature: str = "truncate"
    candidates: str = "best"
    max_step_norm: float | None = None
    on_host: bool = False

    def __post_init__(self):
        object.__setattr__(self, "preconditioner", _preconditioner(self.preconditioner))
        self._check_whole("max_iter")
        self._check_choice("stopping", STOPPING)
        self._check_choice("nonpositive_curvature", NONPOSITIVE_CURVATURE)
        self._check_choice("candidates", ("best", "last"))
        for name in ("tolerance", "warm_start"):
            self._check_number(name)
        if self.max_step_norm is not None:
            self._check_number("max_step_norm")
            self._check(self.max_step_norm > 0, "max_step_norm", "None or above 0: with 0 no step could be taken")
        self._check_flag("on_host")

    def expected(self, last: int | None) -> int:
        """About how many products there will be, up to a power of two, so that plans of products change seldom."""
        iterations = last or min(self.max_iter, FIRST_EXPECTED)
        return 1 << max(iterations - 1, 0).bit_length()

    def solve(self, quadratic: Quadratic, start: Tensor | None) -> Path:
        """The iterates of conjugate gradients on a grid.

        Args:
            quadratic: the damped model.
            start: the last solution [P], or none.
        """
        second = quadratic.second
        run = conjugate_gradient
        if quadratic.block_group is not None:
            run = BlockRanks(quadratic.block_group, quadratic.blocks).conjugate_gradient
        found = run(
            quadratic.matvec,
            -quadratic.gradient,
            None if start is None else self.warm_start * start,
            preconditioner=quadratic.precondition,
            max_iter=self.max_iter,
            stopping=self.stopping,
            tolerance=quadratic.tolerances,
            block_sizes=quadratic.blocks,
            nonpositive_curvature=self.nonpositive_curvature,
            rescale_x0=True,
            share=quadratic.share,
            capture=quadratic.capture,
            iterates_device="cpu" if self.on_host else None,
            second=None if second is None else (second[0], -second[1]),
        )
        return Path(
            found.iterates, found.values, found.indices, found.solution, found.iterations, found.status, found.products
        )


def _preconditioner(given: Any) -> Preconditioner | Matvec | None:
    """A preconditioner by name, as a table of its kind and settings, or as it is."""
    if not isinstance(given, Mapping):
        return find_preconditioner(given)
    settings = dict(given)
    kind = settings.pop("kind", None)
    if kind not in PRECONDITIONERS:
        raise ValueError(f"CG.preconditioner: kind must be one of {', '.join(PRECONDITIONERS)}; got {kind!r}")
    try:
        return PRECONDITIONERS[kind](**settings)
    except TypeError as error:
        raise ValueError(f"CG.preconditioner: {PRECONDITIONERS[kind].__name__} does not take these: {error}") from error
