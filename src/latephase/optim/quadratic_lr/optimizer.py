"""Learning rates from a quadratic model along the direction of a first-order optimizer (AdamQLR and its kin)."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...objective import Objective
from ...parameters import ParameterSpace
from ...solve import reduction_ratio, resolution
from ..parts import (
    Fixed,
    SecondOrder,
    Transaction,
    check_names,
    check_number,
    compare,
    damping_of,
    defaults_of,
    state_of,
    the_objective,
)
from .base import check_base
from .former import FORMER, now, with_parts
from .line import Line, forms_with, line_of, moved, out_of_hand, schedule
from .options import CARRIED, OPTIONS, RULES, UNTUNED, AnyDamping, check_options, complete, over
from .report import QuadraticStepReport, QuadraticStepStatus, status_of
from .rule import judged, learning_rate
from .saved import check_group, check_state


class QuadraticLearningRate(SecondOrder):
    """The direction of a first-order optimizer, with the learning rate that minimises a damped quadratic along it.

    Clarke and Hernandez-Lobato, "Studying K-FAC Heuristics by Viewing Adam through a Second-Order Lens" (ICML 2024),
    whose AdamQLR is this class on Adam. One step on the objective's data:

    1. loss, gradient g; the base optimizer's direction d (in ascent sign: d = g for SGD);
    2. curvature along d: C = d'Md + lambda d'd, with M the curvature matrix and lambda the damping;
    3. learning rate alpha = g'd / C, then clipped and amplified, in that order;
    4. theta <- theta - alpha d;
    5. the loss there, by which lambda is adapted.

    That is one forward and backward pass, one tangent pass (a product with the Hessian for "hessian"), and one more
    forward pass where lambda is adapted.

    The base keeps its own param groups and state, and this optimizer has the same ones; the damping and all options are
    in the groups. The base may have taken steps of its own before, or a state of its own may be loaded. It must move by
    a multiple of its `lr`, which the computed learning rate replaces: what counts of `lr` is only how it changes
    afterwards. A scheduler that halves the `lr` of a group halves the group's updates. What the base does with the
    parameters' values becomes a part of d, so that with AdamW `weight_decay` * theta is added to d, and multiplied by
    alpha like the rest; an L2 term that loss and curvature know of is better given to the objective.

    Departures from the published program: a step whose loss, gradient, direction, learning rate or update is not finite
    leaves parameters, buffers and the base's state as they were, and the damping rises where it is adapted; one whose
    direction is zero leaves all (the program would go on with NaN); |C|, where it is asked for, counts in the
    prediction as well (there, C); rejected steps do not move buffers; the mean squared error has the curvature of the
    loss that is minimised. The program's moving averages of C and of the rate, its bounds on gradient, direction and
    update, and its decoupled weight decay, which none of the paper's settings turns on, are not here.

    Args:
        base: proposes the directions; its `step` must not need a closure.
        curvature: M: "ggn" (default; for cross-entropy and squared error the Fisher matrix of the paper), "hessian", or
            "absolute_hessian", which takes |C| in place of C ("saddle-free").
        damping: lambda: `LevenbergMarquardt` adapts it by the reduction ratio and accepts every step, `DecreasingLoss`
            by whether the loss fell and rejects the others, `Fixed` keeps it. A number is the initial one, and a dict
            changes fields, of the paper's "Untuned", which is the default: 1e-3, factors 1/2 and 2, at least 1e-8, the
            change predicted by the damped model (which predicts less, so that the ratio is biased upwards and in full
            batches the damping falls to its floor).
        lr_clip: bound on |alpha|. Default none; 0.1 in the paper's "Untuned, clipped". On small batches the GGN of a
            cross-entropy that saturates goes to zero faster than g, and alpha explodes; a warning says so.
        amplification: factor on the clipped learning rate. Default 1.
        **former: nothing; an option of a former release is an error that says how it is written now.

    Attributes:
        base: the base optimizer.
        report: `QuadraticStepReport` of the last step; None before the first. Negative slopes and curvatures, which
            lead up the direction, are taken as they are, and are its `status`.

    Raises:
        TypeError: a base that cannot propose directions, or an unknown option.
        ValueError: an unknown option value, or an option that differs between groups.
    """

    report: QuadraticStepReport | None = None
    _warned = False
    _RULE: ClassVar[AnyDamping] = UNTUNED
    """Gives what a number or a table leaves open of the damping."""

    def __init__(
        self,
        base: Optimizer,
        curvature: str = "ggn",
        damping: float | AnyDamping | Mapping[str, Any] = UNTUNED.initial,
        lr_clip: float | None = None,
        amplification: float = 1.0,
        **former: Any,
    ):
        check_names(former, OPTIONS, type(self).__name__, now)
        rule = damping_of(damping, RULES, self._RULE)
        options = {"curvature": curvature, "damping": rule, "lr_clip": lr_clip, "amplification": amplification}
        check_base(base, options)
        for group in base.param_groups:
            if "unit_lr" in group:  # of an earlier wrapping, whose options would be taken for the group's own
                for name in (*options, *CARRIED, "unit_lr"):
                    group.pop(name, None)
            self._check_names(group)
        self.base, self._kind = base, f"QuadraticLearningRate({type(base).__name__})"
        super().__init__(base.param_groups, base.defaults | options | CARRIED)
        self.param_groups, self.state = base.param_groups, base.state
        complete(self.param_groups, self.defaults)
        self._check_groups()

    @property
    def damping(self) -> float:
        """Lambda of the next step, adapted or initial; may be set."""
        options = self.param_groups[0]
        return options["damping"].initial if options["adapted_damping"] is None else options["adapted_damping"]

    @damping.setter
    def damping(self, value: float) -> None:
        check_number("damping", value)
        self._carry(adapted_damping=float(value))
        self._ranks_compared = False

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, objective: Objective | None = None, *, closure: Objective | None = None
    ) -> Tensor:
        """Take one step; an exception of any kind leaves everything as it was.

        Args:
            objective: gives loss, gradient, curvature, and the loss where the step leads.
            closure: the objective, by the name that wrappers of torch optimizers use.

        Returns:
            The objective's loss before the step, scalar.

        Raises:
            TypeError: a plain closure in place of an Objective, or none.
            ValueError: a parameter that is not the model's, data that is not finite, ranks with different parameters
                or options, or an option that differs between groups.
            RuntimeError: in inference mode.
            RankError: another rank raised an error; it is told.
        """
        objective = the_objective(objective, closure, type(self).__name__)
        with Transaction(self, [objective]) as transaction:
            complete(self.param_groups, self.defaults)
            self._check_groups()
            return self._step(objective, transaction)

    def _step(self, objective: Objective, transaction: Transaction) -> Tensor:
        started = time.perf_counter()
        space = objective.space([p for group in self.param_groups for p in group["params"]])
        self._compare_ranks(objective, space)
        objective.reseed()
        damping = self.damping
        line = line_of(self.base, objective, space, self.param_groups[0])
        outcome = self._settle(line, damping, objective, space, transaction)
        self._carry(forms=forms_with(objective, space, self.param_groups[0]))
        self.report = QuadraticStepReport(
            loss=float(line.loss),
            gradient_norm=line.gradient_norm,
            slope=line.slope,
            damping=damping,
            method=line.method,
            accepted=outcome["status"].accepted,
            seconds=time.perf_counter() - started,
            **outcome,
        )
        return line.loss

    def _settle(
        self, line: Line, used: float, objective: Objective, space: ParameterSpace, transaction: Transaction
    ) -> dict[str, Any]:
        """Take the step along the line, or leave everything as it was; what the report says of it."""
        options, loss = self.param_groups[0], float(line.loss)
        rule: AnyDamping = options["damping"]
        adapts = not isinstance(rule, Fixed)
        stayed = {"new_loss": loss if adapts else None, "step_norm": 0.0, "lr": 0.0, "reduction_ratio": None}
        curvature = line.bend + used * line.square
        if line.square == 0:
            status = QuadraticStepStatus.STATIONARY
            if line.proposal is not None and line.gradient_norm > 0:  # a base that only sets up in its first step
                line.proposal.accept()
            return stayed | {"status": status, "curvature": curvature, "predicted_change": 0.0}
        bent, bend = curvature, line.bend
        if options["curvature"] == "absolute_hessian":
            bent, bend = abs(bent), abs(bend)
        lr = learning_rate(line.slope, bent, options)
        taken = lr * schedule(options)
        bend = bent if rule.model == "damped" else bend
        stayed |= {"curvature": curvature, "predicted_change": 0.5 * taken**2 * bend - taken * line.slope}
        vector, _ = moved(line, lr, objective, space, self.param_groups)
        length = None if vector is None else space.length_of_step(vector)
        if vector is None or length is None or not math.isfinite(curvature):
            if adapts:
                self._carry(adapted_damping=rule.next(used, -math.inf))
                stayed |= {"reduction_ratio": -math.inf}
            return stayed | {"status": QuadraticStepStatus.NONFINITE}
        self._warn_of(lr, line, space)
        new_loss, ratio, accepted = None, None, True
        if adapts:
            new_loss = float(objective.value(space.named(vector)))
            smallest = resolution(loss, torch.finfo(line.loss.dtype).eps)
            ratio = reduction_ratio(new_loss - loss, stayed["predicted_change"], smallest, either_sign=True)
            accepted, damping = judged(rule, used, loss, new_loss, ratio)
            self._carry(adapted_damping=damping)
        if not accepted:
            return stayed | {"status": QuadraticStepStatus.REJECTED, "reduction_ratio": ratio}
        if length > 0:
            transaction.write(space, vector, objective, line.buffers)
        if line.proposal is not None:
            line.proposal.accept()
        if length == 0:  # the step is below the rounding of the parameters, or its rate is zero
            return stayed | {"status": QuadraticStepStatus.STATIONARY, "reduction_ratio": ratio}
        status = status_of(line.slope, curvature, new_loss)
        done = {"new_loss": new_loss, "step_norm": length, "lr": taken, "reduction_ratio": ratio}
        return stayed | done | {"status": status}

    def _warn_of(self, lr: float, line: Line, space: ParameterSpace) -> None:
        if self._warned or self.param_groups[0]["lr_clip"] is not None:
            return
        said = out_of_hand(lr, line, space.size)
        if said is None:
            return
        self._warned = True
        warnings.warn(said, stacklevel=6)

    def _carry(self, **values: Any) -> None:
        """Set what is carried, in all groups: not in the state, which the base begins where it finds none."""
        for group in self.param_groups:
            group.update(values)

    def _compare_ranks(self, objective: Objective, space: ParameterSpace) -> None:
        """Every rank must take the same step; the first, and the first after loading, from the same numbers."""
        compare(self, [objective], space, self.damping, None if self._ranks_compared else state_of(self, space))
        self._ranks_compared = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group, to the base as well; see `torch.optim.Optimizer.add_param_group`."""
        if any(param_group is group for group in self.base.param_groups):  # while this optimizer is made
            super().add_param_group(param_group)
            return
        self._check_names(param_group)
        self.base.add_param_group(param_group)
        complete(self.param_groups, self.defaults)
        self._check_groups()

    def _check_names(self, group: Any) -> None:
        """Check that a param group has no option of a former release."""
        former = {name: value for name, value in group.items() if name in FORMER} if isinstance(group, dict) else {}
        check_names(former, (), f"a param group of {type(self).__name__}", now)

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: beside torch's own, the base and the last report."""
        return super().__getstate__() | {"base": self.base, "report": self.report}

    def _read(self, group: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
        """A param group as it was saved, with parts, dicts of them, or flat options; `like` gives what it lacks."""
        like = {name: value for name, value in like.items() if name != "unit_lr"}  # that of the saved rate
        return with_parts(group, like) if any(name in FORMER for name in group) else over(like, group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state that was pickled, with its base, or loaded; the base then shares it."""
        super().__setstate__(state)
        complete(self.param_groups, self.defaults)
        self._kind = f"QuadraticLearningRate({type(self.base).__name__})"
        if "base" not in state:
            self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self.base.state, self.base.param_groups = self.state, self.param_groups
        self._ranks_compared = False

    def _optimizers(self) -> list[Optimizer]:
        return [self, self.base]

    def _checked(
        self, state: Mapping[Any, Any], own: Mapping[Any, Tensor], groups: Sequence[Mapping[str, Any]]
    ) -> dict[Any, Any]:
        """The entries of a state dict, which are the base's, checked."""
        for index, group in enumerate(groups):
            check_group(f"state_dict['param_groups'][{index}]", group, self.base.defaults)
        check_state(self.base, state, own, groups)
        return dict(state)

    def _restored(self, state: Mapping[Any, Any], own: Mapping[Any, Tensor]) -> dict[Tensor, Any]:
        """Nothing: the base's state is cast as torch does it."""
        return {}

    def _check_groups(self) -> None:
        check_options(self.param_groups, self._RULE)


_DEFAULTS = {**defaults_of(QuadraticLearningRate, "former"), **CARRIED}
QuadraticLearningRate._OPTIONS = {**_DEFAULTS, "damping": UNTUNED}
