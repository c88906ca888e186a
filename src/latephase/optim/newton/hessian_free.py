"""The Hessian-free optimizer (Martens 2010; Tatzel, Hennig and Schneider 2022)."""

from collections.abc import Iterable, Mapping
from typing import Any, Self

from ..parts import Damping, check_names, defaults_of
from .cg import CG
from .curvatures import GGN, Armijo, Blocks, Hessian
from .former import now
from .newton import Newton
from .path import Solver
from .settings import FIXED_RATE, LATE_PHASE, OPTIONS, PARTS, PER_GROUP, PUBLISHED, over, part

DEFAULT_SOLVER = CG()


class HessianFree(Newton):
    """Hessian-free optimization: truncated Newton steps by conjugate gradients on curvature products.

    One step (Tatzel et al. 2022, Algorithm 1): gradient and curvature on the objective's data; conjugate gradients on
    the damped quadratic model, started from the last solution; the best of its iterates, the damping of the next step
    and the step size are then judged by the loss on the evaluation objective. Give the evaluation objective data that
    the objective does not have: on the same data the progress is overestimated, and the steps become too large (the
    same paper, Appendix A.2).

    A step that meets a loss, gradient or product that is not finite, or whose line search fails, leaves the parameters
    as they were, forgets the start of the next conjugate gradients, and says so in `report`.

    Args:
        params: parameters or param groups. A group may set `lr`, `damping_scale` (a factor on the damping, default 1)
            and, with blocks, `tolerance` (that of the solver) for itself; every other option is global.
        lr: first step size of the line search, or the step size itself without one. Default 1.0, the Newton step.
        curvature: "ggn" (default), "hessian", or a part with settings of its own: `GGN`, `Hessian`.
        solver: gives the candidates. Default `CG()`, conjugate gradients as Martens (2010) has them.
        damping: lambda of the damped curvature C + lambda I: `LevenbergMarquardt` adapts it, `Fixed` keeps it; a number
            is the first one's initial value. Default 1.0 (Tatzel et al. 2022).
        line_search: True (default) for `Armijo()`, a part with settings of its own, or False: steadier where the
            damping is not yet right.
        blocks: True for `Blocks()`, or a part with settings of its own: curvature only within each param group.
            Default none, the whole matrix.
        debias: take directions from the objective, and slopes and curvatures along them from the evaluation objective,
            which must be of other data (Tatzel et al. 2024, see `solve.reweighing`). Costs one more product per
            iteration and one more gradient. Default False.
        **former: nothing; an option of a former release is an error that says how it is written now.

    A part may also be given as a dict of its fields, as it stands in a file.

    Attributes:
        report: `StepReport` of the last step, `GaussNewtonReport` with `solver=Direct()`; None before the first.

    Raises:
        ValueError: an unknown option value, or a global option that differs between groups.
        TypeError: an unknown option.
    """

    _kind = "HessianFree"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        curvature: str | GGN | Hessian | Mapping[str, Any] = "ggn",
        solver: Solver | Mapping[str, Any] = DEFAULT_SOLVER,
        damping: float | Damping | Mapping[str, Any] = 1.0,
        line_search: bool | Armijo | Mapping[str, Any] = True,
        blocks: bool | Blocks | Mapping[str, Any] | None = None,
        debias: bool = False,
        **former: Any,
    ):
        given = locals()
        super().__init__(params, {name: given[name] for name in OPTIONS}, former)

    @classmethod
    def published(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """The optimizer with the settings of Tatzel, Hennig and Schneider (2022), whatever the defaults become.

        They are `damping=LevenbergMarquardt(1.0)` and `solver=CG()`: at most 250 iterations of conjugate gradients from
        0.95 times the last solution, stopped by Martens' rule, the best of its iterates, and Armijo's line search. A
        step costs a dozen gradients on noisy problems and far more on badly conditioned ones.

        Args:
            params: parameters or param groups.
            **overrides: options in place of these, or beside them.
        """
        check_names(overrides, OPTIONS, f"{cls.__name__}.published", now)
        return cls(params, **over(PUBLISHED, overrides))

    @classmethod
    def late_phase(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """The optimizer with settings measured on late checkpoints, for steps that cost a few gradients.

        They are `damping=LevenbergMarquardt(0.3, thresholds=(0.0, 0.5))` and `solver=CG(max_iter=3)`. With them go
        batches of some thousand rows, an evaluation objective of half as many other rows, curvature on an eighth of the
        batch, and the model in eval mode:

            optimizer = HessianFree.late_phase(model.parameters())
            objective, held_out = Objective(model, loss, batch).split(2048, 1024)
            optimizer.step(objective, evaluation=held_out, curvature_objective=objective.subsample(256))

        How they were found, and where they win and lose: docs/late_phase.md.

        Args:
            params: parameters or param groups.
            **overrides: options in place of these, or beside them; a number for the damping is the initial one, and the
                thresholds stay.
        """
        check_names(overrides, OPTIONS, f"{cls.__name__}.late_phase", now)
        return cls(params, **over(LATE_PHASE, overrides))

    @classmethod
    def fixed_rate(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """Block-diagonal Hessian-free in the form of Zhang et al. (2017): a fixed learning rate and a fixed damping.

        They are `blocks=Blocks()`, `damping=Fixed(1.0)`, `line_search=False` and `solver=CG(candidates="last")`; the
        momentum of the start of conjugate gradients is `warm_start`. The paper's text beside its abstract was not at
        hand: rates, damping and caps are this class's own defaults, to be set. With them go large batches for the
        gradient and a quarter or an eighth of them for the curvature:

            solver = CG(max_iter=30, candidates="last")
            optimizer = HessianFree.fixed_rate(layerwise(model), lr=0.5, damping=0.1, solver=solver)
            optimizer.step(objective, curvature_objective=objective.subsample(256))

        Args:
            params: param groups, each a block: `layerwise(model)`, `by_module(model, names)`, or made by hand.
            **overrides: options in place of these, or beside them; a number for the damping is the fixed one.
        """
        check_names(overrides, OPTIONS, f"{cls.__name__}.fixed_rate", now)
        return cls(params, **over(FIXED_RATE, overrides))


HessianFree._OPTIONS = {
    **PER_GROUP,
    **{name: part(name, x) if name in PARTS else x for name, x in defaults_of(HessianFree, "former").items()},
}
