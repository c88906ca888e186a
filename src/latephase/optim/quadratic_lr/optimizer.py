"""Learning rates from a quadratic model along the direction of a first-order optimizer (AdamQLR and its kin)."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...objective import Objective
from ...parameters import ParameterSpace
from ...solve import resolution
from ..parts import SecondOrder, Transaction, check_number, compare, defaults_of, state_of, the_objective
from .base import check_base
from .line import Line, forms_with, line_of, moved, schedule
from .options import CARRIED, QuadraticOptions, check_options, complete
from .report import QuadraticStepReport, QuadraticStepStatus
from .rule import averaged, judged, learning_rate, reduction
from .saved import check_group, check_state

SANE_CHANGE = 10.0
"""Root mean square change of a parameter in one step from which a learning rate without a limit is worth a warning."""


class QuadraticLearningRate(SecondOrder):
    """The direction of a first-order optimizer, with the learning rate that minimises a damped quadratic along it.

    Clarke and Hernandez-Lobato, "Studying K-FAC Heuristics by Viewing Adam through a Second-Order Lens" (ICML 2024),
    whose AdamQLR is this class on Adam. One step on the objective's data:

    1. loss, gradient g; the base optimizer's direction d (in ascent sign: d = g for SGD);
    2. curvature along d: C = d'Md + lambda d'd, with M the curvature matrix and lambda the damping;
    3. learning rate alpha = g'd / C, then clipped, amplified and averaged, in that order;
    4. theta <- theta - alpha d - decay_per_step * theta;
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
    leaves parameters, buffers, averages and the base's state as they were, and so does one whose direction is zero (the
    program would go on with NaN); averages start at their first value (there, C at 1e7 and the rate at zero); |C|,
    where it is asked for, counts in the prediction as well (there, C); rejected steps do not move buffers; the mean
    squared error has the curvature of the loss that is minimised.

    Args:
        base: proposes the directions; its `step` must not need a closure.
        curvature: M: "ggn" (default; for cross-entropy and squared error the Fisher matrix of the paper) or "hessian".
        damping: initial lambda. Default 1e-3 ("Untuned" in the paper).
        damping_factors: on the damping where it falls and where it rises; None keeps it constant. Default 1/2 and 2,
            from the same source.
        damping_range: adapted damping stays in here. Default at least 1e-8, from the same source.
        damping_rule: "ratio" (default): by the reduction ratio rho, the damping falls above 3/4, rises below 1/4 and
            stays where rho is not a number, as where the predicted change is within the rounding of the loss; every
            step is accepted. "decreasing_loss": it falls where the loss did not rise; otherwise the step is rejected
            and the damping rises.
        reduction_ratio: which quadratic predicts the change: "damped" (default, the paper's; it predicts less, so that
            rho is biased upwards and in full batches the damping falls to its floor) or "undamped", this step's M.
        lr_clip: bound on |alpha|. Default none; 0.1 in the paper's "Untuned, clipped". On small batches the GGN of a
            cross-entropy that saturates goes to zero faster than g, and alpha explodes; a warning says so.
        amplification: factor on the clipped learning rate. Default 1.
        curvature_ema: decay of a moving average of C. Default 0, off.
        lr_ema: decay of a moving average of the learning rate. Default 0, off. Averages go on over rejected steps.
        absolute_curvature: |C| in place of C ("saddle-free"), in learning rate and prediction. Default False.
        gradient_clip: bound on the Euclidean norm of g, before the direction. Default none.
        direction_clip: bound on each entry of d. Default none.
        step_clip: bound on the Euclidean norm of the update of step 4, unknown to the prediction. Default none.
        decay_per_step: decoupled weight decay, see step 4; not multiplied by the learning rate. Default 0.

    Attributes:
        base: the base optimizer.
        report: `QuadraticStepReport` of the last step; None before the first. Negative slopes and curvatures, which
            lead up the direction, are taken as they are, and are its `status`.

    Raises:
        TypeError: a base that cannot propose directions.
        ValueError: an unknown option value, or an option that differs between groups.
    """

    report: QuadraticStepReport | None = None
    _warned = False

    def __init__(
        self,
        base: Optimizer,
        curvature: str = "ggn",
        damping: float = 1e-3,
        damping_factors: tuple[float, float] | None = (0.5, 2.0),
        damping_range: tuple[float, float] = (1e-8, math.inf),
        damping_rule: str = "ratio",
        reduction_ratio: str = "damped",
        lr_clip: float | None = None,
        amplification: float = 1.0,
        curvature_ema: float = 0.0,
        lr_ema: float = 0.0,
        absolute_curvature: bool = False,
        gradient_clip: float | None = None,
        direction_clip: float | None = None,
        step_clip: float | None = None,
        decay_per_step: float = 0.0,
    ):
        options = {name: value for name, value in locals().items() if name in QuadraticOptions.__annotations__}
        check_base(base, options)
        for group in base.param_groups:
            if "unit_lr" in group:  # of an earlier wrapping, whose options would be taken for the group's own
                for name in (*options, *CARRIED, "unit_lr"):
                    group.pop(name, None)
        self.base, self._kind = base, f"QuadraticLearningRate({type(base).__name__})"
        super().__init__(base.param_groups, base.defaults | options | CARRIED)
        self.param_groups, self.state = base.param_groups, base.state
        complete(self.param_groups, self.defaults)
        check_options(self.param_groups)

    @property
    def damping(self) -> float:
        """Lambda of the next step, adapted or initial; may be set."""
        return self.param_groups[0]["damping"]

    @damping.setter
    def damping(self, value: float) -> None:
        check_number("damping", value)
        self._carry(damping=float(value))
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
            check_options(self.param_groups)
            return self._step(objective, transaction)

    def _step(self, objective: Objective, transaction: Transaction) -> Tensor:
        started = time.perf_counter()
        space = objective.space([p for group in self.param_groups for p in group["params"]])
        self._compare_ranks(objective, space)
        objective.reseed()
        damping = self.damping
        line = line_of(self.base, objective, space, self.param_groups[0])
        outcome = self._settle(line, objective, space, transaction)
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
        self, line: Line, objective: Objective, space: ParameterSpace, transaction: Transaction
    ) -> dict[str, Any]:
        """Take the step along the line, or leave everything as it was; what the report says of it."""
        options, loss = self.param_groups[0], float(line.loss)
        factors = options["damping_factors"]
        stayed = {"new_loss": None if factors is None else loss, "step_norm": 0.0, "lr": 0.0, "reduction_ratio": None}
        damped = line.bend + options["damping"] * line.square
        curvature = averaged(options["curvature_average"], damped, options["curvature_ema"])
        if line.square == 0:
            status = QuadraticStepStatus.STATIONARY
            if line.proposal is not None and line.gradient_norm > 0:  # a base that only sets up in its first step
                line.proposal.accept()
            return stayed | {"status": status, "curvature": curvature, "predicted_change": 0.0}
        bent = abs(curvature) if options["absolute_curvature"] else curvature
        lr = learning_rate(line.slope, bent, options)
        taken = lr * schedule(options)
        bend = bent if options["reduction_ratio"] == "damped" else line.bend
        stayed |= {"curvature": curvature, "predicted_change": 0.5 * taken**2 * bend - taken * line.slope}
        vector, _ = moved(line, lr, objective, space, self.param_groups)
        length = None if vector is None else space.length_of_step(vector)
        if vector is None or length is None or not math.isfinite(curvature):  # an infinite average would stay for ever
            if factors is not None and options["damping_rule"] == "decreasing_loss":
                self._carry(damping=judged(loss, math.nan, math.nan, options)[1])
            return stayed | {"status": QuadraticStepStatus.NONFINITE}
        self._warn_of(lr, line, space)
        new_loss, ratio, accepted, damping = None, None, True, options["damping"]
        if factors is not None:
            new_loss = float(objective.value(space.named(vector)))
            smallest = resolution(loss, torch.finfo(line.loss.dtype).eps)
            ratio = reduction(new_loss - loss, stayed["predicted_change"], smallest)
            accepted, damping = judged(loss, new_loss, ratio, options)
        self._carry(damping=damping, curvature_average=curvature, lr_average=lr)
        if not accepted:
            return stayed | {"status": QuadraticStepStatus.REJECTED, "reduction_ratio": ratio}
        if length == 0:  # the step is below the rounding of the parameters, or its rate is zero
            if line.proposal is not None:
                line.proposal.accept()
            return stayed | {"status": QuadraticStepStatus.STATIONARY, "reduction_ratio": ratio}
        transaction.write(space, vector, objective, line.buffers)
        if line.proposal is not None:
            line.proposal.accept()
        status = _status_of(line.slope, curvature, new_loss)
        done = {"new_loss": new_loss, "step_norm": length, "lr": taken, "reduction_ratio": ratio}
        return stayed | done | {"status": status}

    def _warn_of(self, lr: float, line: Line, space: ParameterSpace) -> None:
        if self._warned or self.param_groups[0]["lr_clip"] is not None:
            return
        change = abs(lr) * math.sqrt(line.square / space.size)
        if line.bend == 0:
            said = (
                "the loss has no curvature along the direction, so that the damping alone decides on the rate: "
                "it is linear in the outputs, as the absolute error is, or the batch is fitted to the last digit. Take "
                "a smooth loss (nn.HuberLoss for the absolute error), or an optimizer with a learning rate of its own"
            )
        elif change > SANE_CHANGE:
            said = (
                f"the learning rate {lr:.3g} moves the parameters by {change:.3g} each, in the root mean square: the "
                "curvature along the direction has all but vanished, as that of cross-entropy does on a small batch "
                "that is fitted. Set lr_clip (0.1 is usual with Adam), raise the damping, or enlarge the batch"
            )
        else:
            return
        self._warned = True
        warnings.warn(said, stacklevel=6)

    def _carry(self, **values: Any) -> None:
        """Set options of all groups; the damping stays here, since the base begins its state where it finds none."""
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
        self.base.add_param_group(param_group)
        complete(self.param_groups, self.defaults)
        check_options(self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: beside torch's own, the base and the last report."""
        return super().__getstate__() | {"base": self.base, "report": self.report}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state that was pickled, with its base, or loaded, which the base then shares."""
        super().__setstate__(state)
        complete(self.param_groups, self.defaults)
        self._kind = f"QuadraticLearningRate({type(self.base).__name__})"
        if "base" not in state:
            self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
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
        check_options(self.param_groups)


def _status_of(slope: float, curvature: float, new_loss: float | None) -> QuadraticStepStatus:
    if new_loss is not None and not math.isfinite(new_loss):
        return QuadraticStepStatus.DIVERGED
    if curvature < 0:
        return QuadraticStepStatus.NEGATIVE_CURVATURE
    return QuadraticStepStatus.NEGATIVE_SLOPE if slope < 0 else QuadraticStepStatus.TAKEN


QuadraticLearningRate._OPTIONS = {**defaults_of(QuadraticLearningRate), **CARRIED}
