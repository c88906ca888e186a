"""The Hessian-free optimizer (Martens 2010; Tatzel, Hennig and Schneider 2022)."""

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch.distributed as dist
from torch import Tensor

from ...curvature import Preconditioner, over_blocks
from ...curvature import preconditioner as find_preconditioner
from ...objective import Objective
from ...parameters import ParameterSpace
from ..parts import (
    Carried,
    Damping,
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
from .cg import CG
from .curvatures import GGN, Armijo, Blocks, Hessian
from .former import FORMER, check_names, is_former, with_parts
from .judging import Judge
from .outcome import Outcome
from .path import Path
from .quadratic import Quadratic, linearized, quadratic_of
from .report import report_of
from .settings import FIXED_RATE, LATE_PHASE, OPTIONS, PARTS, PER_GROUP, blocks_of, check_groups, over, part, plain

DEFAULT_SOLVER = CG()


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
        report: `StepReport` of the last step; None before the first.

    Raises:
        ValueError: an unknown option value, or a global option that differs between groups.
        TypeError: an unknown option.
    """

    _kind = "HessianFree"
    report: StepReport | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        curvature: str | GGN | Hessian | Mapping[str, Any] = "ggn",
        solver: CG | Mapping[str, Any] = DEFAULT_SOLVER,
        damping: float | Damping | Mapping[str, Any] = 1.0,
        line_search: bool | Armijo | Mapping[str, Any] = True,
        blocks: bool | Blocks | Mapping[str, Any] | None = None,
        debias: bool = False,
        **former: Any,
    ):
        given = locals()
        options = {name: given[name] for name in OPTIONS}
        check_names(former, former, OPTIONS, type(self).__name__)
        super().__init__(params, {**PER_GROUP, **options, **{name: part(name, options[name]) for name in PARTS}})
        check_groups(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; see `torch.optim.Optimizer.add_param_group`."""
        if isinstance(param_group, dict):
            names = [name for name in param_group if name in FORMER]
            check_names(names, param_group, (), f"param group {len(self.param_groups)} of {type(self).__name__}")
        super().add_param_group(param_group)

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
        check_names(overrides, overrides, OPTIONS, f"{cls.__name__}.late_phase")
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
        check_names(overrides, overrides, OPTIONS, f"{cls.__name__}.fixed_rate")
        return cls(params, **over(FIXED_RATE, overrides))

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
        with Transaction(self, objectives, _group_of(self.param_groups)) as transaction:
            check_groups(self.param_groups)
            return self._step(objective, evaluation, curvature_objective, transaction)

    def _step(
        self, objective: Objective, evaluation: Objective, curvature_objective: Objective, transaction: Transaction
    ) -> Tensor:
        started, options = time.perf_counter(), self.param_groups[0]
        block_group = _group_of(self.param_groups)
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
        one_seed(list(objectives), block_group)
        lr = per_parameter(self.param_groups, "lr", space)
        quadratic = self._quadratic(objective, evaluation, curvature_objective, space)
        path = options["solver"].solve(quadratic, self._carried.start(space))
        if not (quadratic.finite and path.finite):
            self._carried.forget_estimate()
            for each in objectives:
                each.check_data()
        known = quadratic.seen.linear if evaluation is objective else quadratic.seen.other
        on_objective = options["damping"].data == "objective" and evaluation is not objective and not options["debias"]
        others = objective if on_objective else None
        judge = Judge(quadratic, evaluation, others, options["solver"], options["damping"], options["line_search"])
        outcome = judge.outcome(path, None if known is None else float(known.loss), lr)
        if block_group is not None:
            outcome = agreed(outcome, block_group, path.start)
        self._settle(quadratic, path, outcome, objective, transaction)
        self._carried.remember(curvature_objective)
        self._carried.iterations = max(path.iterations)
        seconds = time.perf_counter() - started
        self.report = report_of(quadratic, path, outcome, float(options["lr"]), evaluation is objective, seconds)
        return quadratic.loss

    def _compare_ranks(self, objectives: Sequence[Objective], space: ParameterSpace) -> None:
        """Every rank must take the same step; the first, and the first after loading, from the same numbers."""
        kept: dict[str, Any] | None = None
        if not self._ranks_compared:
            kept = {"start of conjugate gradients": self._carried.start(space)}
        compare(self, objectives, space, self.damping, kept, _group_of(self.param_groups))
        self._ranks_compared = True

    def _quadratic(
        self, objective: Objective, evaluation: Objective, curvature_objective: Objective, space: ParameterSpace
    ) -> Quadratic:
        """The quadratic model, with the preconditioner for it."""
        options, damping = self.param_groups[0], self.damping
        solver: CG = options["solver"]
        blocks, tolerances = blocks_of(self.param_groups, space)
        scale = per_parameter(self.param_groups, "damping_scale", space)
        over = None
        if len(blocks) > 1:
            expected, samples = solver.expected(self._carried.iterations), options["blocks"].samples
            over = partial(over_blocks, sizes=blocks, expected=expected, samples=samples)
        seen = linearized(
            objective,
            curvature_objective,
            evaluation if options["debias"] else None,
            space,
            options["curvature"],
            damping,
            at_once=self._carried.saw(curvature_objective) or len(blocks) > 1,
            over=over,
        )
        method = find_preconditioner(solver.preconditioner)
        if isinstance(method, Preconditioner):
            estimate = self._carried.estimate(method, seen.curved, blocks) if seen.usable else None
            method = None if estimate is None else method.inverse(estimate, damping * scale, blocks)
        return quadratic_of(
            seen,
            damping=damping,
            damping_scale=scale,
            blocks=blocks,
            tolerances=tolerances,
            over=over,
            precondition=method,
            block_group=_group_of(self.param_groups),
            capture=options["curvature"].compile,
        )

    def _settle(
        self, quadratic: Quadratic, path: Path, outcome: Outcome, objective: Objective, transaction: Transaction
    ) -> None:
        """Write parameters and buffers if the step is accepted; keep the damping and the start of the next step."""
        if outcome.vector is not None:
            transaction.write(quadratic.space, outcome.vector, objective, quadratic.buffers)
        self._carried.keep_start(quadratic.space, None if outcome.vector is None else path.start)
        warning = adapt_damping(self._carried, quadratic.damping, outcome.ratio, self.param_groups[0]["damping"])
        if warning is not None:
            warnings.warn(warning, stacklevel=5)

    @property
    def _carried(self) -> Carried:
        return Carried(self.state, self.param_groups, self.param_groups[0]["damping"].initial)

    @property
    def _solver(self) -> CG:
        return self.param_groups[0]["solver"]

    def _checked(
        self, state: Mapping[Any, Any], own: Mapping[Any, Tensor], groups: Sequence[Mapping[str, Any]]
    ) -> dict[Any, Any]:
        """The entries of a state dict, checked, without an estimate that another preconditioner made."""
        found = {number: dict(entry) for number, entry in state.items()}
        check_entries(found, own, checks())
        method = self._solver.preconditioner
        for number, entry in found.items():
            where = f"state_dict['state'][{number!r}]['preconditioner']"
            if "preconditioner" in entry and not check_estimate(where, entry["preconditioner"], method):
                del entry["preconditioner"]
        return found

    def _check_groups(self) -> None:
        check_groups(self.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """The state as torch's optimizers have it, the parts as dicts, with "version" and "optimizer", whose it is.

        Preconditioner and ranks are not in it: they are those of the optimizer that loads it.
        """
        state = super().state_dict()
        return {**state, "param_groups": [plain(group) for group in state["param_groups"]]}

    def _completed(self, saved: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
        """A saved param group with the options that it lacks, its parts as dicts; it may have flat options."""
        return plain(_read(saved, {**self.defaults, **kept}))

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: beside torch's own, the last report."""
        return super().__getstate__() | {"report": self.report}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state that was pickled or loaded, with parts, dicts of them, or flat options."""
        kept = vars(self).get("param_groups", [])
        state = dict(state)
        former = {name: state.pop(name) for name in ("_preconditioner", "_block_group") if name in state}
        method = {"preconditioner": former["_preconditioner"]} if former.get("_preconditioner") is not None else {}
        likes = [dict(group) for group in kept] or [{}] * len(state["param_groups"])
        state["param_groups"] = [
            _read({**group, **method}, {**self._OPTIONS, **like})
            for group, like in zip(state["param_groups"], likes, strict=True)
        ]
        if "defaults" in state:
            state["defaults"] = _read({**state["defaults"], **method}, self._OPTIONS)
        super().__setstate__(state)


def _read(group: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """A param group as it was saved, with parts; `like` gives what it lacks, and what a file does not hold."""
    others = {name: value for name, value in like.items() if name not in ("params", "param_names", "initial_lr")}
    if any(map(is_former, group)):
        return with_parts(group, others)
    return over(others, group)


def _group_of(groups: Sequence[Mapping[str, Any]]) -> dist.ProcessGroup | None:
    """The ranks that share blocks."""
    return None if groups[0]["blocks"] is None else groups[0]["blocks"].group


HessianFree._OPTIONS = {
    **PER_GROUP,
    **{name: part(name, x) if name in PARTS else x for name, x in defaults_of(HessianFree, "former").items()},
}
