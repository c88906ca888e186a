"""The optimizer that takes Newton steps, whichever parts they are made of."""

import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...curvature import Preconditioner, over_blocks
from ...curvature import preconditioner as find_preconditioner
from ...objective import Objective
from ...parameters import ParameterSpace
from ..parts import (
    Carried,
    GaussNewtonReport,
    NonMonotone,
    SecondOrder,
    StepReport,
    TargetRatio,
    Transaction,
    adapt_damping,
    check_entries,
    check_estimate,
    check_names,
    checks,
    compare,
    one_seed,
    per_parameter,
    the_objective,
)
from .block_ranks import agreed
from .former import FORMER, now, with_parts
from .judging import Judge
from .outcome import Outcome
from .path import DampingPath, Path, Solver
from .quadratic import Quadratic, linearized, quadratic_of
from .report import report_of
from .settings import OPTIONS, PARTS, PER_GROUP, blocks_of, check_groups, over, part

DIGITS = 1.0
"""That a damping must have left beside J~'J~ to go downhill, see `solve.direct.squared_suffices`."""


class Newton(SecondOrder):
    """A step is linearised, solved, judged and settled by the parts in the param groups; classes assign them.

    Args:
        params: parameters or param groups.
        options: of `OPTIONS`.
        others: options that there are none of; each is an error that says so.

    Attributes:
        report: `StepReport` of the last step, `GaussNewtonReport` where `Direct` solved it; None before the first.
    """

    report: StepReport | GaussNewtonReport | None = None
    _warned = False
    _NAMES: ClassVar[Sequence[str]] = OPTIONS
    """Options of the constructor."""

    def __init__(self, params: Any, options: Mapping[str, Any], others: Mapping[str, Any]):
        check_names(others, self._NAMES, type(self).__name__, now)
        super().__init__(params, {**PER_GROUP, **options, **{name: part(name, options[name]) for name in PARTS}})
        self._check_groups()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; see `torch.optim.Optimizer.add_param_group`."""
        if isinstance(param_group, dict):
            former = {name: value for name, value in param_group.items() if name in FORMER}
            check_names(former, (), f"param group {len(self.param_groups)} of {type(self).__name__}", now)
        super().add_param_group(param_group)

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
        objective = the_objective(objective, closure, type(self).__name__)
        evaluation = objective if evaluation is None else evaluation
        curvature_objective = objective if curvature_objective is None else curvature_objective
        objectives = (objective, evaluation, curvature_objective)
        with Transaction(self, objectives, _group_of(self.param_groups)) as transaction:
            self._check_groups()
            return self._step(objective, evaluation, curvature_objective, transaction)

    def _step(
        self, objective: Objective, evaluation: Objective, curvature_objective: Objective, transaction: Transaction
    ) -> Tensor:
        started, options = time.perf_counter(), self.param_groups[0]
        block_group = _group_of(self.param_groups)
        if options.get("debias", False) and evaluation is objective:
            raise ValueError(
                "debias=True needs an evaluation objective on other data: "
                "optimizer.step(objective, evaluation=held_out)"
            )
        space = objective.space([p for group in self.param_groups for p in group["params"]])
        self._compare_ranks([objective, evaluation, curvature_objective], space)
        for each in transaction.objectives:
            each.reseed()
        one_seed(transaction.objectives, block_group)
        lr = per_parameter(self.param_groups, "lr", space)
        quadratic = self._quadratic(objective, evaluation, curvature_objective, space)
        path = options["solver"].solve(quadratic, self._start(space))
        if not (quadratic.finite and path.finite):
            self._carried.forget_estimate()
            for each in transaction.objectives:
                each.check_data()
        known = quadratic.seen.linear if evaluation is objective else quadratic.seen.other
        on_objective = (
            options["damping"].data == "objective" and evaluation is not objective and not options.get("debias", False)
        )
        others = objective if on_objective else None
        rule = options["damping"]
        if isinstance(rule, TargetRatio):
            rule = rule.in_stage(self._carried.late)
        before = self._carried.losses if isinstance(rule, NonMonotone) else []
        judge = Judge(quadratic, evaluation, others, options["solver"], rule, options["line_search"], before)
        outcome = judge.outcome(path, None if known is None else float(known.loss), self._rate(lr))
        if block_group is not None:
            outcome = agreed(outcome, block_group, path.start)
        self._settle(quadratic, path, outcome, objective, transaction)
        self._carried.remember(curvature_objective)
        self._carried.iterations = max(path.iterations, default=0)
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
        solver: Solver = options["solver"]
        blocks, tolerances = blocks_of(self.param_groups, space)
        scale = per_parameter(self.param_groups, "damping_scale", space)
        over = None
        if len(blocks) > 1 and solver.multiplies:
            expected, samples = solver.expected(self._carried.iterations), options["blocks"].samples
            over = partial(over_blocks, sizes=blocks, expected=expected, samples=samples)
        seen = linearized(
            objective,
            curvature_objective,
            evaluation if options.get("debias", False) else None,
            space,
            options["curvature"],
            damping,
            at_once=self._carried.saw(curvature_objective) or len(blocks) > 1,
            over=over,
            method="auto" if solver.multiplies else "double_backward",
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
        self._keep_start(quadratic.space, path, outcome)
        rule = self.param_groups[0]["damping"]
        if isinstance(rule, NonMonotone) and outcome.vector is not None:
            eps = torch.finfo(quadratic.loss.dtype).eps
            self._carried.losses = rule.kept(outcome.loss, outcome.new_loss, self._carried.losses, eps)
        used = path.damping(outcome.iteration, quadratic.damping)
        warning = adapt_damping(self._carried, used, outcome.ratio, rule)
        if warning is not None:
            warnings.warn(warning, stacklevel=5)
        if isinstance(path, DampingPath) and not self._warned:
            self._warn_of_rounding(path, used, quadratic.space.dtype)

    def _warn_of_rounding(self, path: DampingPath, used: float, dtype: torch.dtype) -> None:
        """Say once how many digits are left, where the parameters' float32 is too few for a damping."""
        work = path.work(used)
        wide = self.param_groups[0]["solver"].dtype == torch.float64
        if dtype != torch.float32 or wide or not path.dampings or work.digits >= DIGITS:
            return
        instead = ", so that a singular value decomposition takes many times as long in place of Cholesky's"
        warnings.warn(
            f"in float32 a damping of {used:.1e} has {work.digits:.1f} digits left beside J~'J~, whose largest "
            f"eigenvalue is at most {work.largest:.1e}{instead if work.svd else ''}: take parameters and data in "
            "float64, or Direct(dtype=torch.float64), which solves in float64 from rows in float32",
            stacklevel=6,
        )
        self._warned = True

    def _start(self, space: ParameterSpace) -> Tensor | None:
        """Where the solver begins [P], or none."""
        return self._carried.start(space)

    def _keep_start(self, space: ParameterSpace, path: Path, outcome: Outcome) -> None:
        """Keep what the next step begins from; none after a step that was rejected."""
        self._carried.keep_start(space, None if outcome.vector is None else path.start)

    def _rate(self, lr: float | Tensor) -> float | Tensor:
        """The step size that the line search begins with, from that of the param groups."""
        return lr

    @property
    def _carried(self) -> Carried:
        return Carried(self.state, self.param_groups, self.param_groups[0]["damping"].initial)

    @property
    def _solver(self) -> Solver:
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

    def _read(self, group: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
        """A param group as it was saved, with parts, dicts of them, or flat options; `like` gives what it lacks."""
        return with_parts(group, like) if any(name in FORMER for name in group) else over(like, group)

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: beside torch's own, the last report."""
        return super().__getstate__() | {"report": self.report}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state that was pickled or loaded, with parts, dicts of them, or flat options."""
        former = {name: state[name] for name in ("_preconditioner", "_block_group") if name in state}
        state = {name: value for name, value in state.items() if name not in former}
        if former.get("_preconditioner") is not None:  # an attribute, when options were flat
            method = {"preconditioner": former["_preconditioner"]}
            state["param_groups"] = [{**group, **method} for group in state["param_groups"]]
            state["defaults"] = {**state["defaults"], **method}
        super().__setstate__(state)


def _group_of(groups: Sequence[Mapping[str, Any]]) -> dist.ProcessGroup | None:
    """The ranks that share blocks."""
    return None if groups[0]["blocks"] is None else groups[0]["blocks"].group
