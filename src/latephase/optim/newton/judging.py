"""What the evaluation objective makes of the candidates: which one, how good the model was, how far to go."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...objective import Objective
from ...parameters import ParameterSpace
from ...solve import armijo, backtrack, reduction_ratio, resolution
from ..parts import Damping, StepStatus
from .outcome import Outcome
from .parts import CG, Armijo
from .quadratic import LocalModel


class Trials:
    """Losses of the evaluation objective at trial points theta + p, each a function call without side effect."""

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


def judge(
    model: LocalModel, objective: Objective, evaluation: Objective, options: Mapping[str, Any], lr: float | Tensor
) -> Outcome:
    """Choose candidate and step size by the evaluation objective; nothing is written.

    Candidates longer than `max_step_norm` are scaled back to it first, so that the reduction ratio is that of what was
    tried. Where every candidate is worse than staying, the best of them is still the direction of the line search, and
    the ratio below zero raises the damping. Without a line search it is taken as it is, if its loss is finite.

    Args:
        model: the quadratic model with its candidates.
        objective: gives the actual change of the reduction ratio where the damping's rule says so.
        evaluation: gives the losses.
        options: of the optimizer.
        lr: of the param groups, one number or one per parameter [P].
    """
    loss = model.evaluation_loss
    if not model.finite:
        loss = math.nan if loss is None else loss
        return Outcome(loss, loss)
    trials = Trials(evaluation, model.space)
    if loss is None:
        loss = float(evaluation.value())
    if not math.isfinite(loss):
        evaluation.check_data()
        return Outcome(loss, loss)
    solver: CG = options["solver"]
    rule: Damping = options["damping"]
    search: Armijo | bool = options["line_search"]
    candidates = _Candidates(model, lr, solver.max_step_norm, evaluation)
    if solver.candidates == "best":
        chosen, candidate_loss, _ = backtrack(lambda i: trials.value(candidates[i]), len(candidates), loss)
    else:
        chosen = len(candidates) - 1
        candidate_loss = trials.value(candidates[chosen])
    candidate = candidates[chosen]
    direction = candidate if isinstance(lr, float) and lr == 1 else lr * candidate
    predicted, slope, length = candidates.numbers(chosen, direction, rule.model == "damped")
    if length == 0:
        return Outcome(loss, loss, StepStatus.STATIONARY, math.nan, 0.0, model.cg.indices[chosen])
    smallest = resolution(loss, torch.finfo(model.loss.dtype).eps)
    telling = not abs(predicted) <= smallest
    change = candidate_loss - loss
    if rule.data == "objective" and evaluation is not objective and not options["debias"] and telling:
        change = Trials(objective, model.space).value(candidate) - float(model.loss)
    ratio = reduction_ratio(change, predicted, smallest)
    known = candidate_loss if direction is candidate else None
    if isinstance(search, Armijo):
        found = armijo(
            lambda alpha: trials.value(alpha * direction),
            loss,
            slope,
            c=search.c,
            factor=search.factor,
            max_trials=search.max_trials,
            known=known,
        )
        alpha, new_loss = found.lr, found.value
    else:
        alpha, new_loss = 1.0, trials.value(direction) if known is None else known
    iteration = model.cg.indices[chosen]
    if not math.isfinite(new_loss):
        return Outcome(loss, loss, StepStatus.NONFINITE, ratio, predicted, iteration)
    if alpha == 0:
        status = StepStatus.LINE_SEARCH_FAILED if telling else StepStatus.STATIONARY
        return Outcome(loss, loss, status, ratio, predicted, iteration)
    vector = trials.point(alpha * direction)
    length = model.space.length_of_step(vector)
    if length is None:
        return Outcome(loss, loss, StepStatus.NONFINITE, ratio, predicted, iteration)
    if length == 0:  # the step is below the rounding of the parameters
        return Outcome(loss, loss, StepStatus.STATIONARY, math.nan, predicted, iteration)
    return Outcome(loss, new_loss, StepStatus.TAKEN, ratio, predicted, iteration, alpha, length, vector)


class _Candidates:
    """The iterates as steps that may be tried, none longer than a limit."""

    def __init__(self, model: LocalModel, lr: float | Tensor, limit: float | None, evaluation: Objective):
        self.model, self.share = model, evaluation.reduce.share
        self.scales = [1.0] * len(self)
        if limit is not None:
            lengths = [(lr * self._iterate(index)).norm() for index in range(len(self))]
            self.scales = (limit / self.share(torch.stack(lengths).double())).clamp(max=1.0).tolist()

    def __len__(self) -> int:
        return len(self.model.cg.iterates)

    def _iterate(self, index: int) -> Tensor:
        return self.model.cg.iterates[index].to(self.model.space.device)

    def __getitem__(self, index: int) -> Tensor:
        scale = self.scales[index]
        return self._iterate(index) if scale == 1 else scale * self._iterate(index)

    def numbers(self, index: int, direction: Tensor, damped: bool) -> list[float]:
        """Predicted change of a candidate, slope of the model along a direction, and the candidate's length."""
        iterate, gradient, scale = self._iterate(index), self.model.gradient, self.scales[index]
        predicted = self.model.predicted(index, damped)
        if scale != 1:  # q(s x) = s g'x + s^2 (q(x) - g'x)
            along = torch.dot(gradient, iterate).double()
            predicted = scale * along + scale**2 * (predicted - along)
        numbers = torch.stack([predicted, torch.dot(gradient, direction).double(), iterate.norm().double()])
        return self.share(numbers).tolist()
