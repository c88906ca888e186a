"""What the evaluation objective makes of the candidates: which one, how good the model was, how far to go."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...objective import Objective
from ...parameters import ParameterSpace
from ...solve import armijo, backtrack, reduction_ratio, resolution
from ..parts import Damping, NonMonotone, StepStatus
from .curvatures import Armijo
from .outcome import Outcome
from .path import DampingPath, Path, Solver
from .quadratic import Quadratic

ROUNDING = 16
"""A step of so many units in the last place of the parameters is made of rounding."""


class Trials:
    """Losses of an objective at trial points theta + p, each a function call without side effect."""

    def __init__(self, objective: Objective, space: ParameterSpace):
        self.objective = objective
        self.space = space
        self.theta = space.values()

    def point(self, p: Tensor) -> Tensor:
        """Theta + p [P]."""
        return self.theta + p

    def value(self, p: Tensor) -> float:
        """f(theta + p)."""
        return float(self.objective.value(self.space.named(self.point(p.to(self.space.device)))))


class Judge:
    """Chooses candidate and step size by the evaluation objective; nothing is written.

    Candidates longer than `max_step_norm` are scaled back to it first, so that the reduction ratio is that of what was
    tried. Where every candidate is worse than staying, the best of them is still the direction of the line search, and
    the ratio below zero raises the damping. Without a line search it is taken as it is, if its loss is finite.

    Args:
        quadratic: the model.
        evaluation: gives the losses.
        others: gives the actual change of the reduction ratio where that is another objective's, or none.
        solver: says which candidates are tried.
        rule: says which model predicts the change.
        search: the line search, or False.
        before: losses of the steps before, for `NonMonotone`. Default none.
    """

    def __init__(
        self,
        quadratic: Quadratic,
        evaluation: Objective,
        others: Objective | None,
        solver: Solver,
        rule: Damping,
        search: Armijo | bool,
        before: Sequence[float] = (),
    ):
        self._quadratic, self._solver, self._rule, self._search = quadratic, solver, rule, search
        self._evaluation, self._others, self._before = evaluation, others, before
        self._trials = Trials(evaluation, quadratic.space)

    def outcome(self, path: Path, loss: float | None, lr: float | Tensor) -> Outcome:
        """What becomes of the step.

        Args:
            path: the candidates.
            loss: of the evaluation objective at theta, where it is known already.
            lr: of the param groups, one number or one per parameter [P].
        """
        if not (self._quadratic.finite and path.finite):
            loss = math.nan if loss is None else loss
            return Outcome(loss, loss)
        if loss is None:
            loss = float(self._evaluation.value())
        if not math.isfinite(loss):
            self._evaluation.check_data()
            return Outcome(loss, loss)
        candidates = _Candidates(self._quadratic, path, lr, self._solver.max_step_norm, self._evaluation)
        found = self._walk(path, candidates, loss) if isinstance(path, DampingPath) else self._choose(candidates, loss)
        if not path.candidates:
            return Outcome(loss, loss)
        chosen, candidate_loss = found
        candidate, iteration = candidates[chosen], path.indices[chosen]
        direction = candidate if isinstance(lr, float) and lr == 1 else lr * candidate
        predicted, slope, length = candidates.numbers(chosen, direction, self._rule.model == "damped")
        if length == 0:
            return Outcome(loss, loss, StepStatus.STATIONARY, math.nan, 0.0, iteration)
        ratio, telling = self._ratio(candidate, predicted, candidate_loss, loss)
        if isinstance(path, DampingPath):
            if math.isnan(candidate_loss) and length <= self._rounding:
                return Outcome(loss, loss, StepStatus.STATIONARY, math.nan, predicted, iteration)
            if math.isnan(candidate_loss):
                return Outcome(loss, loss, StepStatus.LINE_SEARCH_FAILED, ratio, predicted, iteration)
            if not telling and candidate_loss >= loss:
                return Outcome(loss, loss, StepStatus.STATIONARY, ratio, predicted, iteration)
        known = candidate_loss if direction is candidate else None
        alpha, new_loss = self._how_far(direction, loss, slope, known)
        if not math.isfinite(new_loss):
            return Outcome(loss, loss, StepStatus.NONFINITE, ratio, predicted, iteration)
        if alpha == 0:
            status = StepStatus.LINE_SEARCH_FAILED if telling else StepStatus.STATIONARY
            return Outcome(loss, loss, status, ratio, predicted, iteration)
        vector = self._trials.point(alpha * direction)
        length = self._quadratic.space.length_of_step(vector)
        if length is None:
            return Outcome(loss, loss, StepStatus.NONFINITE, ratio, predicted, iteration)
        if length == 0:  # the step is below the rounding of the parameters
            return Outcome(loss, loss, StepStatus.STATIONARY, math.nan, predicted, iteration)
        return Outcome(loss, new_loss, StepStatus.TAKEN, ratio, predicted, iteration, alpha, length, vector)

    @property
    def _rounding(self) -> float:
        """A step so long is made of the parameters' rounding."""
        theta = self._trials.theta
        return ROUNDING * torch.finfo(theta.dtype).eps * float(theta.norm())

    def _ratio(self, candidate: Tensor, predicted: float, there: float, loss: float) -> tuple[float, bool]:
        """The reduction ratio of a candidate with its loss, and whether the predicted change is above rounding."""
        smallest = resolution(loss, torch.finfo(self._quadratic.loss.dtype).eps)
        telling = not abs(predicted) <= smallest
        change = there - self._reference(loss)
        if self._others is not None and telling:
            change = Trials(self._others, self._quadratic.space).value(candidate) - float(self._quadratic.loss)
        return reduction_ratio(change, predicted, smallest), telling

    def _reference(self, loss: float) -> float:
        """The loss that a candidate has to be below: that at theta, or the highest of the last ones."""
        if not isinstance(self._rule, NonMonotone):
            return loss
        return self._rule.highest(loss, self._before, torch.finfo(self._quadratic.loss.dtype).eps)

    def _walk(self, path: DampingPath, candidates: "_Candidates", loss: float) -> tuple[int, float]:
        """The candidate where the damping's rule stops, and the loss there; not a number where it takes none."""
        losses: dict[int, float] = {}

        def ratio(damping: float) -> float:
            index = path.extend(damping)
            if index is None:
                return -math.inf
            candidate = candidates[index]
            losses[index] = self._trials.value(candidate)
            predicted = candidates.numbers(index, candidate, self._rule.model == "damped")[0]
            return self._ratio(candidate, predicted, losses[index], loss)[0]

        damping = self._rule.walk(self._quadratic.damping, ratio)
        chosen = None if damping is None else path.extend(damping)
        return (len(path.candidates) - 1, math.nan) if chosen is None else (chosen, losses[chosen])

    def _choose(self, candidates: "_Candidates", loss: float) -> tuple[int, float]:
        """The candidate, and the loss there."""
        if self._solver.candidates == "best":
            return backtrack(lambda i: self._trials.value(candidates[i]), len(candidates), loss)
        last = len(candidates) - 1
        return last, self._trials.value(candidates[last])

    def _how_far(self, direction: Tensor, loss: float, slope: float, known: float | None) -> tuple[float, float]:
        """The step size, and the loss there."""
        search = self._search
        if isinstance(search, Armijo):
            found = armijo(
                lambda alpha: self._trials.value(alpha * direction),
                loss,
                slope,
                c=search.c,
                factor=search.factor,
                max_trials=search.max_trials,
                known=known,
            )
            return found.lr, found.value
        return 1.0, self._trials.value(direction) if known is None else known


class _Candidates:
    """The candidates as steps that may be tried, none longer than a limit."""

    def __init__(
        self, quadratic: Quadratic, path: Path, lr: float | Tensor, limit: float | None, evaluation: Objective
    ):
        self.quadratic, self.path, self.share = quadratic, path, evaluation.reduce.share
        self._lr, self._limit = lr, limit
        self._scales: list[float] = []

    def _scale(self, index: int) -> float:
        """The factor on a candidate; of all that there are by now, computed together."""
        if self._limit is None:
            return 1.0
        if index >= len(self._scales):
            lengths = [(self._lr * self._candidate(i)).norm() for i in range(len(self._scales), len(self))]
            self._scales += (self._limit / self.share(torch.stack(lengths).double())).clamp(max=1.0).tolist()
        return self._scales[index]

    def __len__(self) -> int:
        return len(self.path.candidates)

    def _candidate(self, index: int) -> Tensor:
        return self.path.candidates[index].to(self.quadratic.space.device)

    def __getitem__(self, index: int) -> Tensor:
        scale = self._scale(index)
        return self._candidate(index) if scale == 1 else scale * self._candidate(index)

    def numbers(self, index: int, direction: Tensor, damped: bool) -> list[float]:
        """Predicted change of a candidate, slope of the model along a direction, and the candidate's length."""
        p, gradient, scale = self._candidate(index), self.quadratic.slopes, self._scale(index)
        value = self.path.change(index, damped)
        if value is None:
            predicted = self.quadratic.undamped(math.fsum(self.path.values[index]), p)
        else:
            predicted = torch.tensor(value, dtype=torch.float64, device=p.device)
        if scale != 1:  # q(s x) = s g'x + s^2 (q(x) - g'x)
            along = torch.dot(gradient, p).double()
            predicted = scale * along + scale**2 * (predicted - along)
        numbers = torch.stack([predicted, torch.dot(gradient, direction).double(), p.norm().double()])
        return self.share(numbers).tolist()
