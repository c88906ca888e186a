"""K-FAC as Martens and Grosse (2015) have it, with the heuristics that Clarke and Hernandez-Lobato (2024) study."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ...curvature import Linearization, linearize
from ...objective import Objective
from ...parameters import ParameterSpace
from ...solve import reduction_ratio, resolution
from ..parts import (
    Damping,
    Fixed,
    SecondOrder,
    StepStatus,
    Transaction,
    check_entries,
    check_names,
    compare,
    defaults_of,
    the_objective,
)
from .carried import CHECKS, KFACCarried
from .factors import Factors, diagonal_layers, finite, renewed
from .former import FORMER, now, with_parts
from .options import OPTIONS, UNADAPTIVE, KroneckerFactors, adaptive, check_options, over, part, rule_for
from .report import KFACStepReport, nothing_done
from .trial import Trial, propose

DEFAULT_FACTORS = KroneckerFactors()


class KFAC(SecondOrder):
    """Kronecker-factored approximate curvature (Martens and Grosse 2015), in its block-diagonal form.

    One step on the objective's data, Sections in that paper:

    1. loss and gradient g;
    2. factors A (second moment of a layer's inputs) and B (of the slopes in its outputs, under the model's own
       distribution), as moving averages with decay min(1 - 1/k, factor_decay) at estimate k (Section 5). B is sampled
       with random signs (`curvature.preconditioners.Kronecker`), whose expectation is the Gauss-Newton matrix's;
    3. direction Delta = -F^-1 g, F having the blocks (B + gamma / pi) kron (A + pi gamma), gamma = sqrt(lambda + wd),
       pi the root of the ratio of the factors' mean eigenvalues (Section 6.3). Gamma is not adapted on its own (the
       paper does so in Section 6.6, kfac-jax does not): gamma^2 I in this product is the damping of step 4. Inverses
       have the gamma of when they were made, see `inverse_period`;
    4. update delta = alpha Delta + mu delta_0, delta_0 the last one: alpha and mu minimise g'x + 0.5 x'(C + lambda I)x
       with the exact Gauss-Newton matrix C of these data, the L2 term in it (Sections 6.4 and 7);
    5. every `adapt_period` steps the loss there, by which lambda is adapted (Section 6.5).

    Linear and two-dimensional convolution layers that the model calls once get factors. All other parameters
    (normalisation, embeddings, recurrent and shared layers) have a diagonal block, estimated from the same signs;
    `report.diagonal_layers` names them.

    A step costs two forward and backward passes and three tangent passes; where all is fixed no tangent pass. A step
    that meets a loss, gradient, factor or update that is not finite leaves parameters, buffers and state as they were,
    but for the damping, which rises where it is adapted; so does a step to a loss that is not finite, where that is
    computed.

    Args:
        params: parameters or param groups. A group may set `lr` for itself; every other option is global.
        lr: alpha. Default None, the minimiser of step 4; the group's `lr` then is 1.0, a factor on its updates, for
            schedulers. A number fixes it.
        momentum: mu. Default None, the minimiser of step 4. A number fixes it, and 0 turns momentum off, which saves
            two tangent passes.
        damping: lambda: `LevenbergMarquardt` adapts it, `Fixed` keeps it. A number is the initial one, and a dict
            changes fields, of the rule of Section 6.5: times (19/20) ** adapt_period where the reduction ratio is
            above 3/4, divided by it below 1/4, and at least 1e-8 (Clarke and Hernandez-Lobato 2024). Default 1.0, from
            the last source; Martens and Grosse took 150 for losses that are sums over hundreds of outputs.
        adapt_period: T1: steps after which the damping is adapted. Default 5 (Section 6.5).
        factors: how the factors are kept. Default `KroneckerFactors()`.
        **former: nothing; an option of a former release is an error that says how it is written now.

    A part may also be given as a dict of its fields, as it stands in a file.

    Attributes:
        report: `KFACStepReport` of the last step; None before the first.

    Raises:
        ValueError: an unknown option value, or a global option that differs between groups.
        TypeError: an unknown option.
    """

    _kind = "KFAC"
    report: KFACStepReport | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        momentum: float | None = None,
        damping: float | Damping | Mapping[str, Any] = 1.0,
        adapt_period: int = 5,
        factors: KroneckerFactors | Mapping[str, Any] = DEFAULT_FACTORS,
        **former: Any,
    ):
        check_names(former, OPTIONS, type(self).__name__, now)
        options = {
            "lr": 1.0 if lr is None else lr,
            "momentum": momentum,
            "damping": part("damping", damping, rule_for(adapt_period)),
            "adapt_period": adapt_period,
            "factors": part("factors", factors, DEFAULT_FACTORS),
        }
        super().__init__(params, options | {"exact_lr": lr is None, "exact_momentum": momentum is None})
        check_options(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; see `torch.optim.Optimizer.add_param_group`."""
        if isinstance(param_group, dict):
            former = {name: value for name, value in param_group.items() if name in FORMER}
            check_names(former, (), f"param group {len(self.param_groups)} of {type(self).__name__}", now)
        super().add_param_group(param_group)

    @classmethod
    def adaptive(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """K-FAC as Clarke and Hernandez-Lobato (2024) compare it: everything is adapted, and inverted, at every step.

        Exact rate and momentum, damping 1.0, times or by 0.9 at every step, averages with decay 0.95.

        Args:
            params: parameters or param groups.
            **overrides: options in place of these, or beside them; so in both named settings.
        """
        check_names(overrides, OPTIONS, f"{cls.__name__}.adaptive", now)
        return cls(params, **over(adaptive(overrides.get("adapt_period", 1)), overrides))

    @classmethod
    def unadaptive(cls, params: Iterable[Any], **overrides: Any) -> Self:
        """The ablation of the same paper: rate 1e-3, momentum 0.9 and damping 1.0 stay as they are."""
        check_names(overrides, OPTIONS, f"{cls.__name__}.unadaptive", now)
        return cls(params, **over(UNADAPTIVE, overrides))

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        objective: Objective | None = None,
        evaluation: Objective | None = None,
        *,
        closure: Objective | None = None,
    ) -> Tensor:
        """Take one step; an exception of any kind leaves everything as it was.

        Args:
            objective: gives loss, gradient, factors and the exact quadratic model.
            evaluation: gives the actual change of the loss, by which the damping is adapted. Default: the objective.
                Not with `LevenbergMarquardt(data="objective")`, which takes that of the objective.
            closure: the objective, by the name that wrappers of torch optimizers use.

        Returns:
            The objective's loss before the step, scalar.

        Raises:
            TypeError: a plain closure in place of an Objective, or none.
            ValueError: a parameter that is not the model's, data that is not finite, objectives of different models,
                ranks with different parameters or options, a loss that K-FAC cannot treat, or a global option that
                differs between groups.
            RuntimeError: in inference mode.
            RankError: another rank raised an error; it is told.
        """
        started = time.perf_counter()
        objective = the_objective(objective, closure, type(self).__name__)
        evaluation = objective if evaluation is None else evaluation
        with Transaction(self, (objective, evaluation)) as transaction:
            check_options(self.param_groups)
            if evaluation is not objective and self.param_groups[0]["damping"].data == "objective":
                raise ValueError(
                    'LevenbergMarquardt(data="objective") looks at the objective alone, and an evaluation objective is '
                    "given: leave one of them out"
                )
            space = objective.space([p for group in self.param_groups for p in group["params"]])
            self._compare_ranks([objective, evaluation], space)
            for each in transaction.objectives:
                each.reseed()
            loss, outcome = self._step(objective, evaluation, space, transaction)
            self.report = KFACStepReport(**outcome, seconds=time.perf_counter() - started)
        return loss

    def _step(
        self, objective: Objective, evaluation: Objective, space: ParameterSpace, transaction: Transaction
    ) -> tuple[Tensor, dict[str, Any]]:
        """Take the step, or leave everything as it was; the loss, and what the report says of it."""
        options, carried, damping = self.param_groups[0], self._carried, self.damping
        adapt = damping > 0 and not isinstance(options["damping"], Fixed)
        judged = adapt and (carried.steps + 1) % options["adapt_period"] == 0
        modelled = options["exact_lr"] or options["momentum"] is None or judged
        method = "auto" if modelled else "double_backward"
        linear = linearize(
            objective, parameters=space.parameters, method=method, at_once=carried.saw(objective) and modelled
        ).unwatched()
        loss, norm = float(linear.loss), float(objective.reduce.share(linear.gradient.norm()))
        stayed = nothing_done(loss, norm, damping, -math.inf if adapt else None)
        if not (math.isfinite(norm) and math.isfinite(loss)):
            objective.check_data()
            self._adapt(damping, -math.inf if adapt else math.nan)
            return linear.loss, stayed
        factors, updated = renewed(carried.factors, linear, options["factors"], carried.steps, damping)
        stayed |= {"factors_updated": updated, "diagonal_layers": diagonal_layers(factors, objective.model, space)}
        if not objective.reduce.share(finite(factors)):
            self._adapt(damping, -math.inf if adapt else math.nan)
            return linear.loss, stayed
        trial = propose(linear, factors, carried.update(space), self.param_groups, damping, judged)
        stayed |= {"predicted_change": trial.predicted, "products": trial.products}
        stayed |= {"method": linear.method} if trial.products else {}
        if trial.step_norm == 0 and norm == 0:
            return linear.loss, stayed | {"status": StepStatus.STATIONARY, "reduction_ratio": None}
        return linear.loss, self._settle(linear, trial, factors, evaluation, stayed, adapt, judged, transaction)

    def _settle(
        self,
        linear: Linearization,
        trial: Trial,
        factors: Factors,
        evaluation: Objective,
        stayed: dict[str, Any],
        adapt: bool,
        judged: bool,
        transaction: Transaction,
    ) -> dict[str, Any]:
        """Write parameters, buffers and state if the update is good, adapt the damping; what the report says of it."""
        objective, space, carried = linear.objective, linear.space, self._carried
        found: dict[str, Any] = {"new_loss": None, "reduction_ratio": None}
        vector, ratio = space.values().add_(trial.update), math.nan
        length = space.length_of_step(vector) if math.isfinite(trial.step_norm) else None
        good = length is not None
        if not good:
            ratio = -math.inf
        elif judged:
            losses = self._losses(linear, evaluation, vector)
            good = all(math.isfinite(each) for each in losses)
            predicted = math.nan if trial.predicted is None else trial.predicted
            smallest = resolution(losses[0], torch.finfo(linear.loss.dtype).eps)
            ratio = reduction_ratio(losses[1] - losses[0], predicted, smallest)
            found = {"evaluation_loss": losses[0], "new_evaluation_loss": losses[1], "reduction_ratio": ratio}
            found["new_loss"] = losses[1] if evaluation is objective else None
        if adapt:
            self._adapt(stayed["damping"], ratio)
        if not good:
            return stayed | {"reduction_ratio": ratio if adapt else None}
        if length == 0:  # the update is below the rounding of the parameters
            return stayed | found | {"status": StepStatus.STATIONARY, "reduction_ratio": None}
        transaction.write(space, vector, objective, linear.buffers)
        carried.taken(space, trial.update, factors)
        carried.remember(objective)
        done = {"step_norm": length, "lr": trial.lr, "momentum": trial.momentum}
        return stayed | found | done | {"status": StepStatus.TAKEN, "accepted": True}

    def _losses(self, linear: Linearization, evaluation: Objective, vector: Tensor) -> tuple[float, float]:
        """The evaluation objective's loss before the step and where it leads."""
        before = float(linear.loss) if evaluation is linear.objective else float(evaluation.value())
        if not math.isfinite(before):
            evaluation.check_data()
            return before, before
        return before, float(evaluation.value(linear.space.named(vector)))

    def _adapt(self, damping: float, ratio: float) -> None:
        """Set the damping of the next step."""
        rule = self.param_groups[0]["damping"]
        if not isinstance(rule, Fixed):
            self._carried.damping = rule.next(damping, ratio)

    def _compare_ranks(self, objectives: Sequence[Objective], space: ParameterSpace) -> None:
        """Every rank must take the same step; the first, and the first after loading, from the same numbers."""
        compare(self, objectives, space, self.damping, None if self._ranks_compared else self._carried.tensors(space))
        self._ranks_compared = True

    @property
    def _carried(self) -> KFACCarried:
        return KFACCarried(self.state, self.param_groups, self.param_groups[0]["damping"].initial)

    def _checked(
        self, state: Mapping[Any, Any], own: Mapping[Any, Tensor], groups: Sequence[Mapping[str, Any]]
    ) -> dict[Any, Any]:
        """The entries of a state dict, checked."""
        check_entries(state, own, CHECKS)
        return dict(state)

    def _read(self, group: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
        """A param group as it was saved, with parts, dicts of them, or flat options; `like` gives what it lacks."""
        exact = {"exact_momentum": group["momentum"] is None} if "momentum" in group else {}
        group = {**exact, **group}
        return with_parts(group, like) if any(name in FORMER for name in group) else over(like, group)

    def _check_groups(self) -> None:
        check_options(self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: beside torch's own, the last report."""
        return super().__getstate__() | {"report": self.report}


_DEFAULTS = {**defaults_of(KFAC, "former"), "lr": 1.0, "damping": rule_for(5)}
KFAC._OPTIONS = {"exact_lr": True, "exact_momentum": True, **_DEFAULTS}
