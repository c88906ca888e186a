"""What has to hold of every step of every trial, whatever the configuration is."""

import copy
import dataclasses
import math
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from latephase import Fixed, HessianFree, Objective

from .cases import Trial, model_of, objectives_of, optimizer_of

ERRORS: dict[str, str] = {
    r"debias.*evaluation": "debias wants an evaluation objective on other data",
    r"structural_damping.*WithHidden": "structural damping wants a model that hands on its hidden states",
    r"Expected more than 1 value per channel": "torch: batch norm in training mode on one row",
    r"initial must be in its range": "the damping lies outside its range",
    r"no rows|has 0 rows|empty|without rows": "a batch without rows",
    r"every target is ignored|weights.*sum to 0|weighs nothing|no target counts": "nothing to average",
    r"values that are not finite, the first in row": "data that hold NaN or infinity",
    r"several chunks or ranks must be weighed": "a loss that does not say what it averages over is cut",
    r"K-FAC needs a loss of one tensor that is convex in it": "K-FAC has no factors for a loss that is linear",
    r"can be differentiated neither twice nor in forward mode": "a loss without second derivatives",
    r"has no second derivative in torch": "the same",
    r"microbatch_size=\"auto\"|'auto'": "the size of a microbatch cannot be found",
    r"parameters .* (are|is) not finite|not finite.*parameters": "parameters that are not finite at the start",
}
"""Parts of messages of documented errors, and why each is right."""
WARNINGS = [
    r"the damping has arrived",
    r"example by example",
    r"layers that get a diagonal instead of Kronecker factors",
    r"is not traced: its (products|value|loss|gradient)",
    r"the loss has no curvature along the direction",
    r"the curvature along the direction has all but vanished",
]
"""Parts of the warnings that a step may give."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of two computations of one loss, relative: the dtype's rounding times the terms of a sum, with room."""
DRAWING = ("dropout",)
"""Models whose loss is another at every pass."""


class Violation(AssertionError):
    """Something that must never be."""


@dataclasses.dataclass
class Outcome:
    """What became of a trial.

    Attributes:
        statuses: of its steps, or the reason of a documented error.
        problem: what must not be, if anything.
    """

    statuses: list[str]
    problem: str | None = None


def perform(trial: Trial) -> Outcome:
    """Take the steps of a trial, and look at each."""
    statuses: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _steps(trial, statuses)
        except Violation as problem:
            return Outcome(statuses, str(problem))
        except Exception as error:
            reason = documented(error)
            if reason is None:
                return Outcome(statuses, f"{type(error).__name__}: {str(error)[:400]}")
            statuses.append(f"error: {reason}")
    unknown = [str(w.message)[:300] for w in caught if not any(re.search(part, str(w.message)) for part in WARNINGS)]
    return Outcome(statuses, f"warning: {unknown[0]}" if unknown else None)


def documented(error: Exception) -> str | None:
    """Why an error is right, or None."""
    return next((reason for part, reason in ERRORS.items() if re.search(part, str(error), re.DOTALL)), None)


def _steps(trial: Trial, statuses: list[str]) -> None:
    model = model_of(trial)
    optimizer = optimizer_of(trial, model)
    for step in range(trial.setting["steps"]):
        arguments, judge = objectives_of(trial, model, step)
        before, state, drawn = _everything(model), repr(_bits(optimizer.state_dict())), torch.get_rng_state()
        start = _vector(model)
        try:
            optimizer.step(*arguments)
        except Exception:
            _require(_everything(model) == before, "a step that raised changed the model")
            _require(repr(_bits(optimizer.state_dict())) == state, "a step that raised changed the state")
            _require(torch.equal(torch.get_rng_state(), drawn), "a step that raised drew random numbers")
            raise
        assert optimizer.report is not None
        statuses.append(str(optimizer.report.status))
        _look(trial, optimizer, model, judge, start)
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())


def _look(trial: Trial, optimizer: Any, model: nn.Module, judge: Objective, start: Tensor) -> None:
    report, end = optimizer.report, _vector(model)
    moved = not torch.equal(start, end)
    _require(bool(end.isfinite().all()) or not bool(start.isfinite().all()), "parameters are not finite")
    _require(report.accepted == moved, f"accepted is {report.accepted}, and the parameters moved: {moved}")
    if isinstance(optimizer, HessianFree):
        _require(report.accepted == (report.status == "taken"), f"accepted {report.accepted}, status {report.status}")
        _bounds(optimizer, trial, report, float(start.norm() + end.norm()))
    length = float((end - start).norm())
    if length < 1e18:  # the squares of float32 overflow soon after
        room = 1e-2 * length + 1e-6 * float(start.norm())
        _require(abs(report.step_norm - length) <= room, f"step_norm {report.step_norm}, and {length} was moved")
    if not report.accepted:
        _require(report.step_norm == 0 and report.lr == 0, f"not taken, with {report.step_norm} and rate {report.lr}")
    _require(math.isfinite(optimizer.damping) and optimizer.damping >= 0, f"damping {optimizer.damping}")
    report.as_dict()
    _losses(trial, report, model, judge)


def _bounds(optimizer: HessianFree, trial: Trial, report: Any, size: float) -> None:
    options = optimizer.param_groups[0]
    rule, solver = options["damping"], options["solver"]
    low, high = (rule.value, rule.value) if isinstance(rule, Fixed) else rule.range
    inside = low <= optimizer.damping <= high or optimizer.damping == rule.initial
    _require(inside, f"damping {optimizer.damping} is outside")
    if solver.max_step_norm is not None:
        room = torch.finfo(trial.setting["dtype"]).eps * size  # the parameters are rounded
        longest = solver.max_step_norm * (1 + 1e-5) + room
        _require(report.step_norm <= longest, f"step_norm {report.step_norm} is too long")
    if math.isnan(report.reduction_ratio):
        _require(optimizer.damping == report.damping, "the damping moved")
    _require(0 <= report.cg_chosen <= max(report.cg_iterations, default=0) <= solver.max_iter, "iterations")


def _losses(trial: Trial, report: Any, model: nn.Module, judge: Objective) -> None:
    """What the report says of the judged loss is so, and with line search on it has not risen."""
    setting = trial.setting
    new = getattr(report, "new_evaluation_loss", report.new_loss)
    old = getattr(report, "evaluation_loss", report.loss)
    searches = setting["optimizer"] == "HessianFree" and trial.options.get("line_search", True)
    if new is None or old is None:
        return
    if searches or report.status == "rejected":
        _require(not new > old, f"the judged loss rose from {old!r} to {new!r}")
    if setting["model"] in DRAWING or (setting["model"] == "batch_norm_eval" and report.accepted):
        return
    actual = float(judge.value())
    scale = abs(actual) + _sizes(trial, model)
    same = new == actual or math.isnan(new) or math.isnan(actual) or math.isinf(actual)
    _require(
        same or abs(new - actual) <= TOLERANCE[setting["dtype"]] * scale,
        f"the report says {new!r} of the loss after the step, which is {actual!r}",
    )


def _sizes(trial: Trial, model: nn.Module) -> float:
    """The size of what a loss is a difference of: the L2 term, and 1 for a logarithm."""
    decay = trial.setting["weight_decay"]
    return 1.0 + 0.5 * decay * float(sum((p.detach().double() ** 2).sum() for p in model.parameters()))


def _vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()


def _everything(model: nn.Module) -> Any:
    tensors = {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in _flat(model)}
    return tensors, [module.training for module in model.modules()], [p.grad is None for p in model.parameters()]


def _bits(tree: Any) -> Any:
    """A state dict with each tensor's dtype, shape and bytes: printed tensors leave out most of their numbers."""
    return tree_map(lambda x: _of_tensor(x) if isinstance(x, Tensor) else x, tree)


def _of_tensor(x: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    return str(x.dtype), tuple(x.shape), x.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def _flat(model: nn.Module) -> Any:
    return ((name, tensor.detach().reshape(-1)) for name, tensor in model.state_dict().items())


def _require(holds: bool, words: str) -> None:
    if not holds:
        raise Violation(words)
