"""Self-scaled Broyden and BFGS with a dense inverse Hessian."""

import math
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...objective import Objective
from ...parameters import ParameterSpace
from ...solve import Correction, WolfeResult, WolfeStatus, correction, resolution
from ..parts import (
    SecondOrder,
    StepStatus,
    Transaction,
    check_entries,
    compare,
    defaults_of,
    per_parameter,
    the_objective,
)
from .carried import CHECKS, QuasiNewtonCarried, check_inverse
from .evaluation import Evaluation, LastPoint, begin
from .line import Line, first_trial
from .options import Wolfe, check_options, over, search_of
from .report import QuasiNewtonStepReport, nothing_done


class SelfScaledBroyden(SecondOrder):
    """Quasi-Newton steps with a dense inverse Hessian H [P, P], by a self-scaled update of Broyden's class.

    One step on the objective's data: the direction p = -Hg, a line search along it for the strong Wolfe conditions, and
    the update of H from the change s of the parameters and the change y of the gradient on the same data
    (`solve.correction`). It costs a gradient for each trial of the line search, mostly one, and three passes over H;
    the gradient at its beginning is that at the end of the last step where the objective is the same object and its
    data, parameters and buffers were not written since.

    Urbán, Stefanou and Pons (2024, arXiv:2405.04230) train physics-informed networks of up to some thousand parameters
    with it to errors that L-BFGS does not reach. H is P^2 numbers: 0.8 GB for 10,000 parameters in float64. It is kept
    when the data change, points drawn anew for example; batches whose curvature has little to do with each other's are
    not what it is for. Where the line search fails along what H gave, the parameters stay, H is dropped, and
    `report.restarted` says so.

    Train in float64. In float32 the gradient's differences have no digits left long before the loss stops falling,
    and a warning says so.

    Args:
        params: parameters or param groups. A group may set `lr` for itself; every other option is global.
        lr: factor on the direction, for schedulers. Default 1.0, the quasi-Newton step. Where groups differ in it, H is
            updated by BFGS without a scale, since the scale needs H^-1 s.
        update: "broyden" (default), the self-scaled member of Broyden's class; "bfgs", self-scaled BFGS;
            "unscaled_bfgs", BFGS.
        line_search: True (default) for `Wolfe()`, a part with settings of its own, or False: the step of size `lr` is
            taken wherever the loss there is finite, and H is updated where the slope has risen along it.

    A part may also be given as a dict of its fields, as it stands in a file.

    Attributes:
        report: `QuasiNewtonStepReport` of the last step; None before the first.

    Raises:
        ValueError: an option with a value that will not do, or a global option that differs between groups.
    """

    _kind = "SelfScaledBroyden"
    _warned = False
    _last: LastPoint | None = None
    report: QuasiNewtonStepReport | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        update: str = "broyden",
        line_search: Wolfe | bool | Mapping[str, Any] = True,
    ):
        super().__init__(params, {"lr": lr, "update": update, "line_search": search_of(line_search)})
        check_options(self.param_groups)

    @property
    def damping(self) -> float:
        """0: there is none."""
        return 0.0

    @damping.setter
    def damping(self, value: float) -> None:
        raise ValueError(f"SelfScaledBroyden has no damping to set (to {value!r}): its line search takes that place")

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, objective: Objective | None = None, *, closure: Objective | None = None
    ) -> Tensor:
        """Take one step; an exception of any kind leaves everything as it was.

        Args:
            objective: gives losses and gradients.
            closure: the objective, by the name that wrappers of torch optimizers use.

        Returns:
            The objective's loss before the step, scalar.

        Raises:
            TypeError: a plain closure in place of an Objective, or none.
            ValueError: a parameter that is not the model's, data that is not finite, ranks with different parameters or
                options, or a global option that differs between groups.
            MemoryError: there is no room for H.
            RuntimeError: in inference mode.
            RankError: another rank raised an error; it is told.
        """
        started = time.perf_counter()
        objective = the_objective(objective, closure, type(self).__name__)
        with Transaction(self, [objective]) as transaction:
            check_options(self.param_groups)
            space = objective.space([p for group in self.param_groups for p in group["params"]])
            compare(self, [objective], space, 0.0, None if self._ranks_compared else self._carried.tensors(space))
            self._ranks_compared = True
            self._advise(space)
            objective.reseed()
            start, end, change, outcome = self._step(objective, space, transaction)
            self.report = QuasiNewtonStepReport(**outcome, seconds=time.perf_counter() - started)
        # In place, after all that may fail: a copy of H would need the memory of another.
        if change is not None:
            with objective.reduce.together():
                self._update(change, space)
        self._last = None if end is None else LastPoint(objective, space, end, self._last)
        return start.loss

    def _step(
        self, objective: Objective, space: ParameterSpace, transaction: Transaction
    ) -> tuple[Evaluation, Evaluation | None, Correction | None, dict[str, Any]]:
        """Take the step; what is known at its beginning and end, the update of H, and what the report says."""
        carried = self._carried
        start, computed = begin(self._last, objective, space)
        loss, norm = float(start.loss), float(objective.reduce.share(start.gradient.norm()))
        stayed = nothing_done(loss, norm, computed, carried.updates)
        if not (math.isfinite(norm) and math.isfinite(loss)):
            objective.check_data()
            return start, None, None, stayed
        if norm == 0:
            return start, start, None, stayed | {"status": StepStatus.STATIONARY}
        inverse, lr = carried.inverse(space), per_parameter(self.param_groups, "lr", space)
        stayed["restarted"] = inverse is None and carried.updates > 0  # of other parameters
        inverse = carried.begin(space) if inverse is None else inverse
        line = Line(objective, space, start, (inverse @ start.gradient).neg_().mul_(lr), space.values())
        slope = line.slope_of(start)
        if not slope < 0 and carried.updates > 0:
            carried.begin(space)
            stayed["restarted"] = True
            line.direction = start.gradient.neg().mul_(lr)
            slope = line.slope_of(start)
        stayed["updates"] = carried.updates
        if not slope < 0:  # a schedule has set the rates to zero, or the numbers have no digits left
            zero = slope == 0
            return start, start if zero else None, None, stayed | ({"status": StepStatus.STATIONARY} if zero else {})
        rate, eps = lr if isinstance(lr, float) else None, torch.finfo(start.loss.dtype).eps
        nothing = -slope <= resolution(loss, eps) and float(line.direction.norm()) <= eps * float(line.origin.norm())
        if nothing and isinstance(self.param_groups[0]["line_search"], Wolfe):
            return start, *self._failed(StepStatus.STATIONARY, start, stayed)
        return start, *self._searched(line, slope, rate, stayed, transaction)

    def _searched(
        self, line: Line, slope: float, rate: float | None, stayed: dict[str, Any], transaction: Transaction
    ) -> tuple[Evaluation | None, Correction | None, dict[str, Any]]:
        """Search along the line, and settle; what is known at the end, the update of H, what the report says."""
        carried, loss, options = self._carried, stayed["loss"], self.param_groups[0]
        smallest = resolution(loss, torch.finfo(line.start.loss.dtype).eps)
        first = first_trial(slope, carried.decrease, stayed["gradient_norm"], smallest)
        result = line.search(options["line_search"], slope, first)
        stayed["gradients"] += len(line.found)
        searched = isinstance(options["line_search"], Wolfe)
        stayed["line_search"] = result.status if result is not None and searched else None
        if result is None:
            return self._failed(StepStatus.NONFINITE, line.start, stayed)
        if result.status is WolfeStatus.FAILED:
            nothing = carried.updates == 0 and line.gain(slope, first) <= smallest
            return self._failed(StepStatus.STATIONARY if nothing else StepStatus.LINE_SEARCH_FAILED, line.start, stayed)
        vector, end = line.at(result.lr), line.found[result.lr]
        length = line.space.length_of_step(vector)
        if length is None or length == 0:  # does not fit in the parameters' dtypes, or is below their rounding
            status = StepStatus.NONFINITE if length is None else StepStatus.STATIONARY
            return line.start if length == 0 else None, None, stayed | {"status": status}
        change = self._change(line, result, slope, rate, vector - line.origin)
        transaction.write(line.space, vector, line.objective, line.start.buffers)
        carried.decrease = max(loss - result.value, 0.0)
        size = None if rate is None else result.lr * rate
        done = {
            "new_loss": result.value,
            "step_norm": length,
            "predicted_change": None if size is None else result.lr * slope * (1 - size / 2),
            "lr": result.lr * float(options["lr"]),
            "status": StepStatus.TAKEN,
            "accepted": True,
        }
        if change is not None:
            done |= {"updated": True, "updates": carried.updates + 1, "tau": change.tau, "theta": change.theta}
        return end, change, stayed | done

    def _change(
        self, line: Line, result: WolfeResult, slope: float, rate: float | None, s: Tensor
    ) -> Correction | None:
        """The update of H for a step s [P]; None where the gradients say nothing of the curvature."""
        carried = self._carried
        inverse: Tensor = carried.inverse(line.space)  # pyright: ignore[reportAssignmentType]  # begun before the search
        y = line.found[result.lr].gradient - line.start.gradient
        curved = None if rate is None else -(result.lr**2) * rate * slope
        update = self.param_groups[0]["update"]
        return correction(s, y, inverse @ y, curved, update, first=carried.updates == 0)

    def _failed(
        self, status: StepStatus, start: Evaluation, stayed: dict[str, Any]
    ) -> tuple[Evaluation, None, dict[str, Any]]:
        """Drop H, which led nowhere, and leave the parameters as they were."""
        if self._carried.updates > 0:
            self._carried.forget()
            stayed = stayed | {"restarted": True, "updates": 0}
        return start, None, stayed | {"status": status}

    def _update(self, change: Correction, space: ParameterSpace) -> None:
        """Update H in place; where that is interrupted, drop it."""
        carried = self._carried
        try:
            change.apply_(carried.inverse(space))  # pyright: ignore[reportArgumentType]
            carried.count_update()
        except BaseException:
            carried.forget()
            self._ranks_compared = False
            raise

    def _advise(self, space: ParameterSpace) -> None:
        """Warn, once, of parameters whose gradients have too few digits for differences of them."""
        narrow = next((p.dtype for p in space.parameters if p.dtype != torch.float64), None)
        if narrow is None or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"SelfScaledBroyden on parameters in {narrow}: it learns the curvature from differences of gradients, "
            "which have few digits left there. Train in float64: model.double(), and data in float64",
            stacklevel=5,
        )

    @property
    def _carried(self) -> QuasiNewtonCarried:
        return QuasiNewtonCarried(self.state, self.param_groups)

    def _checked(self, state: Mapping[Any, Any], own: Mapping[Any, Tensor], groups: Any) -> dict[Any, Any]:
        """The entries of a state dict, checked."""
        check_entries(state, own, CHECKS)
        for number, entry in state.items():
            check_inverse(f"state_dict['state'][{number!r}]", entry)
        return dict(state)

    def _read(self, group: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
        """A param group as it was saved, its line search a part or a dict; `like` gives what it lacks."""
        return over(like, group)

    def _check_groups(self) -> None:
        check_options(self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: beside torch's own, the last report."""
        return super().__getstate__() | {"report": self.report}


SelfScaledBroyden._OPTIONS = {**defaults_of(SelfScaledBroyden), "line_search": Wolfe()}
