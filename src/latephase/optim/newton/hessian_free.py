"""The Hessian-free optimizer (Martens 2010; Tatzel, Hennig and Schneider 2022)."""

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from ...curvature import Linearization, Matvec, Preconditioner
from ...curvature import preconditioner as find_preconditioner
from ...objective import Objective
from ...parameters import ParameterSpace
from ..parts import (
    Carried,
    SecondOrder,
    StepReport,
    Transaction,
    adapt_damping,
    check_entries,
    check_estimate,
    check_number,
    checks,
    compare,
    defaults_of,
    one_seed,
    per_parameter,
    the_objective,
)
from .block_ranks import agreed
from .judging import judge
from .options import FIXED_RATE, LATE_PHASE, blocks_of, check_groups, rule_of
from .outcome import Outcome
from .quadratic import LocalModel, solve

FIRST_EXPECTED = 50
"""Iterations of conjugate gradients that a first step is expected to take at most."""


def _rounded(iterations: int) -> int:
    """Up to a power of two, so that plans of products change seldom."""
    return 1 << max(iterations - 1, 0).bit_length()


class HessianFree(SecondOrder):
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
            and, with block_diagonal=True, `cg_tolerance` for itself; every other option is global.
        curvature: "ggn" (default; positive semi-definite for convex losses, which conjugate gradients need) or
            "hessian".
        damping: initial lambda of the damped curvature C + lambda I. Default 1.0 (Tatzel et al. 2022).
        adapt_damping: adapt lambda by the reduction ratio (`solve.levenberg_marquardt`). Default True.
        lr: first step size of the line search, or the step size itself without one. Default 1.0, the Newton step.
        line_search: Armijo's rule on the evaluation objective (`solve.armijo`). Default True: steadier where the
            damping is not yet right.
        cg_max_iter: cap on iterations of conjugate gradients. Default 250 (Martens 2010).
        cg_decay_x0: factor on the last solution where the next run starts. Default 0.95 (Martens and Sutskever 2012).
            A start that is worse than zero is scaled to its best multiple at no cost.
        cg_backtracking: choose among the iterates on a grid (`solve.backtrack`); else take the last. Default True.
        cg_stopping: "martens" (default) or "residual" (`solve.conjugate_gradient`).
        cg_tolerance: relative progress per iteration (default 5e-4, Martens 2010), or |r|/|b|.
        preconditioner: "empirical_fisher", "ggn_diagonal", "nystrom" or "kfac", or an object of those classes with
            settings of its own (`curvature.preconditioners`); or a callable r [P] -> M^-1 r [P], symmetric positive
            definite, block-diagonal if the curvature is. Default none, as in the paper's experiments.
        nonpositive_curvature: "truncate" (default), "ignore" or "absolute" (`solve.conjugate_gradient`).
        curvature_dtype: dtype in which products run, loss and gradient staying in the parameters' own. Default that.
        compile: send products through `torch.compile` once a shape is traced, and on CUDA capture each iteration of
            conjugate gradients as a graph that is replayed; not with several blocks. Default False: compiling takes
            some tens of seconds for each shape, so that it pays in long runs only.
        iterates_on_host: keep the candidates of conjugate gradients in the host's memory: about 20 vectors of the size
            of the parameters at 250 iterations. Default False.
        block_diagonal: curvature only within each param group (Zhang et al. 2017), see `layerwise` and `by_module`.
            Blocks are solved side by side; how their products are computed is in `report.block_methods`
            (`curvature.OverBlocks`). Default False.
        block_samples: estimate the blocks' products from this many random columns where that is cheaper than from all
            outputs. Default none, exact products.
        block_group: ranks that share the blocks between them, each solving its own; parameters and data must be the
            same on all. Not kept by pickling. Default none, this process solves all.

        damping_thresholds: reduction ratios below which the damping rises and above which it falls. Default 1/4 and
            3/4 (Martens 2010, Section 4.1).
        damping_factors: on the damping where it falls and where it rises. Default 2/3 and 3/2, from the same source.
        damping_range: adapted damping stays in here, so that it can always come back by factors; a warning says when it
            arrives at a bound. Default 1e-12 to 1e12.
        reduction_ratio: "undamped" (default, Martens' own program) or "damped": which quadratic model predicts the
            change. The damped one predicts less, so that ratios are higher and the damping falls sooner.
        ratio_data: on which data the reduction ratio takes the actual change: "evaluation" (default; as candidate and
            step size) or "objective", the data of the model that predicts it, at one more forward pass. Late in
            training the first may stay below 1/4 whatever the damping is, since a batch's gradient is mostly noise to
            other data; the damping then rises until steps are tiny. Sutskever's program takes the second. With debias
            the model is the evaluation data's, and so is the change in any case.
        structural_damping: mu: the curvature gains lambda mu J_h' phi'(h) J_h for hidden units h of a recurrent
            network, whose model returns `WithHidden` (Martens and Sutskever 2011, Section 3; they take 1/30). It counts
            as curvature in the reduction ratio, as in Sutskever's program. Default 0, none.
        max_step_norm: candidates with a longer step are scaled back to this length before they are tried. Default none:
            the damping bounds the step.
        debias: take directions from the objective, and slopes and curvatures along them from the evaluation objective,
            which must be of other data (Tatzel et al. 2024, see `solve.reweighing`). Costs one more product per
            iteration and one more gradient. Default False.

    Attributes:
        report: `StepReport` of the last step; None before the first.

    Raises:
        ValueError: an unknown option value, or a global option that differs between groups.
    """

    _kind = "HessianFree"
    report: StepReport | None = None
    _preconditioner: Preconditioner | Matvec | None = None
    _block_group: dist.ProcessGroup | None = None

    def __init__(
        self,
        params: Iterable[Any],
        curvature: str = "ggn",
        damping: float = 1.0,
        adapt_damping: bool = True,
        lr: float = 1.0,
        line_search: bool = True,
        cg_max_iter: int = 250,
        cg_decay_x0: float = 0.95,
        cg_backtracking: bool = True,
        cg_stopping: str = "martens",
        cg_tolerance: float = 5e-4,
        preconditioner: str | Preconditioner | Matvec | None = None,
        nonpositive_curvature: str = "truncate",
        curvature_dtype: torch.dtype | None = None,
        block_diagonal: bool = False,
        block_samples: int | None = None,
        block_group: dist.ProcessGroup | None = None,
        compile: bool = False,
        iterates_on_host: bool = False,
        damping_thresholds: tuple[float, float] = (1 / 4, 3 / 4),
        damping_factors: tuple[float, float] = (2 / 3, 3 / 2),
        damping_range: tuple[float, float] = (1e-12, 1e12),
        reduction_ratio: str = "undamped",
        ratio_data: str = "evaluation",
        structural_damping: float = 0.0,
        max_step_norm: float | None = None,
        debias: bool = False,
    ):
        given = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        self._preconditioner = find_preconditioner(given.pop("preconditioner"))
        self._block_group = given.pop("block_group")
        super().__init__(params, {"damping_scale": 1.0, **given})
        check_groups(self.param_groups)

    @classmethod
    def late_phase(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """The optimizer with settings measured on late checkpoints, for steps that cost a few gradients.

        They are `damping=0.3`, `cg_max_iter=3` and `damping_thresholds=(0.0, 0.5)`. With them go batches of some
        thousand rows, an evaluation objective of half as many other rows, curvature on an eighth of the batch, and the
        model in eval mode:

            optimizer = HessianFree.late_phase(model.parameters())
            objective, held_out = Objective(model, loss, batch).split(2048, 1024)
            optimizer.step(objective, evaluation=held_out, curvature_objective=objective.subsample(256))

        How they were found, and where they win and lose: docs/late_phase.md.

        Args:
            params: parameters or param groups.
            **overrides: options in place of these, or beside them.
        """
        return cls(params, **(LATE_PHASE | overrides))

    @classmethod
    def fixed_rate(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """Block-diagonal Hessian-free in the form of Zhang et al. (2017): a fixed learning rate and a fixed damping.

        They are `block_diagonal=True`, `adapt_damping=False`, `line_search=False` and `cg_backtracking=False`; the
        momentum of the start of conjugate gradients is `cg_decay_x0`. The paper's text beside its abstract was not at
        hand: rates, damping and caps are this class's own defaults, to be set. With them go large batches for the
        gradient and a quarter or an eighth of them for the curvature:

            optimizer = HessianFree.fixed_rate(layerwise(model), lr=0.5, damping=0.1, cg_max_iter=30)
            optimizer.step(objective, curvature_objective=objective.subsample(256))

        Args:
            params: param groups, each a block: `layerwise(model)`, `by_module(model, names)`, or made by hand.
            **overrides: options in place of these, or beside them.
        """
        return cls(params, **(FIXED_RATE | overrides))

    @property
    def damping(self) -> float:
        """Lambda of the next step, adapted or initial; may be set."""
        return self._carried.damping

    @damping.setter
    def damping(self, value: float) -> None:
        check_number("damping", value)
        self._carried.damping = value
        self._ranks_compared = False

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        objective: Objective | None = None,
        evaluation: Objective | None = None,
        curvature_objective: Objective | None = None,
        *,
        closure: Objective | None = None,
    ) -> Tensor:
        """Take one step; an exception of any kind leaves everything as it was.

        Args:
            objective: gives loss and gradient.
            evaluation: gives the loss that chooses candidate, damping and step size. Default: the objective; better is
                one on other data.
            curvature_objective: gives the curvature, on a part of the data for example. Default: the objective.
            closure: the objective, by the name that wrappers of torch optimizers use.

        Returns:
            The objective's loss before the step, scalar.

        Raises:
            TypeError: a plain closure in place of an Objective, or none.
            ValueError: a parameter that is not the model's, data that is not finite, objectives of different models,
                ranks with different parameters or options, or a global option that differs between groups.
            RuntimeError: in inference mode.
            RankError: another rank raised an error; it is told.
        """
        objective = the_objective(objective, closure, "HessianFree")
        evaluation = objective if evaluation is None else evaluation
        curvature_objective = objective if curvature_objective is None else curvature_objective
        objectives = {id(o): o for o in (objective, evaluation, curvature_objective)}.values()
        with Transaction(self, objectives, self._block_group) as transaction:
            check_groups(self.param_groups)
            return self._step(objective, evaluation, curvature_objective, transaction)

    def _step(
        self, objective: Objective, evaluation: Objective, curvature_objective: Objective, transaction: Transaction
    ) -> Tensor:
        started, options = time.perf_counter(), self.param_groups[0]
        objectives = {id(o): o for o in (objective, evaluation, curvature_objective)}.values()
        if options["debias"] and evaluation is objective:
            raise ValueError(
                "debias=True needs an evaluation objective on other data: "
                "optimizer.step(objective, evaluation=held_out)"
            )
        space = objective.space([p for group in self.param_groups for p in group["params"]])
        self._compare_ranks([objective, evaluation, curvature_objective], space)
        for each in objectives:
            each.reseed()
        one_seed(list(objectives), self._block_group)
        model = self._solve(objective, evaluation, curvature_objective, space)
        if not model.finite:
            self._carried.forget_estimate()
            for each in objectives:
                each.check_data()
        outcome = judge(model, objective, evaluation, options, per_parameter(self.param_groups, "lr", space))
        if self._block_group is not None:
            outcome = agreed(outcome, self._block_group, model.cg.solution)
        self._settle(model, outcome, objective, transaction)
        self._carried.remember(curvature_objective)
        self._carried.iterations = max(model.cg.iterations)
        self.report = StepReport(
            loss=float(model.loss),
            new_loss=outcome.new_loss if evaluation is objective else None,
            evaluation_loss=outcome.loss,
            new_evaluation_loss=outcome.new_loss,
            gradient_norm=model.gradient_norm,
            step_norm=outcome.step_norm,
            damping=model.damping,
            predicted_change=outcome.predicted,
            reduction_ratio=outcome.ratio,
            lr=outcome.lr * float(options["lr"]),
            cg_iterations=model.cg.iterations,
            cg_status=model.cg.status,
            cg_chosen=outcome.iteration,
            products=model.products,
            method=model.method,
            block_methods=model.block_methods,
            recomputed=model.recomputed,
            status=outcome.status,
            accepted=outcome.vector is not None,
            seconds=time.perf_counter() - started,
        )
        return model.loss

    def _compare_ranks(self, objectives: Sequence[Objective], space: ParameterSpace) -> None:
        """Every rank must take the same step; the first, and the first after loading, from the same numbers."""
        kept: dict[str, Any] | None = None
        if not self._ranks_compared:
            kept = {"preconditioner": type(self._preconditioner).__qualname__}
            kept["start of conjugate gradients"] = self._carried.start(space)
        compare(self, objectives, space, self.damping, kept, self._block_group)
        self._ranks_compared = True

    def _solve(self, objective, evaluation, curvature_objective, space: ParameterSpace) -> LocalModel:
        """The quadratic model and its candidates."""
        blocks, tolerances = blocks_of(self.param_groups, space)
        start = self._carried.start(space)

        def precondition(curved: Linearization, damping: float | Tensor) -> Matvec | None:
            method = self._preconditioner
            if not isinstance(method, Preconditioner):
                return method
            return method.inverse(self._carried.estimate(method, curved, blocks), damping, blocks)

        return solve(
            objective,
            evaluation,
            curvature_objective,
            space,
            self.param_groups[0],
            damping=self.damping,
            damping_scale=per_parameter(self.param_groups, "damping_scale", space),
            blocks=blocks,
            tolerances=tolerances,
            start=None if start is None else self.param_groups[0]["cg_decay_x0"] * start,
            at_once=self._carried.saw(curvature_objective) or len(blocks) > 1,
            expected=_rounded(self._carried.iterations or min(self.param_groups[0]["cg_max_iter"], FIRST_EXPECTED)),
            precondition=precondition,
            block_group=self._block_group,
        )

    def _settle(self, model: LocalModel, outcome: Outcome, objective: Objective, transaction: Transaction) -> None:
        """Write parameters and buffers if the step is accepted; keep the damping and the start of the next step."""
        if outcome.vector is not None:
            transaction.write(model.space, outcome.vector, objective, model.buffers)
        self._carried.keep_start(model.space, None if outcome.vector is None else model.cg.solution)
        warning = adapt_damping(self._carried, model.damping, outcome.ratio, rule_of(self.param_groups[0]))
        if warning is not None:
            warnings.warn(warning, stacklevel=5)

    @property
    def _carried(self) -> Carried:
        return Carried(self.state, self.param_groups)

    def _checked(
        self, state: Mapping[Any, Any], own: Mapping[Any, Tensor], groups: Sequence[Mapping[str, Any]]
    ) -> dict[Any, Any]:
        """The entries of a state dict, checked, without an estimate that another preconditioner made."""
        found = {number: dict(entry) for number, entry in state.items()}
        check_entries(found, own, checks())
        for number, entry in found.items():
            where = f"state_dict['state'][{number!r}]['preconditioner']"
            if "preconditioner" in entry and not check_estimate(where, entry["preconditioner"], self._preconditioner):
                del entry["preconditioner"]
        return found

    def _check_groups(self) -> None:
        check_groups(self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: beside torch's own, the last report and the preconditioner."""
        return super().__getstate__() | {"report": self.report, "_preconditioner": self._preconditioner}


HessianFree._OPTIONS = {"damping_scale": 1.0, **defaults_of(HessianFree, "preconditioner", "block_group")}
