"""What every optimizer checks: numbers, options, and what a step is given."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...objective import Objective
from ...parameters import ParameterSpace


def check_number(name: str, value: Any) -> None:
    """Check that a value is a finite number, at least 0.

    Raises:
        ValueError: it is not.
    """
    number = isinstance(value, (int, float, torch.Tensor)) and not isinstance(value, bool)
    number = number and not (isinstance(value, torch.Tensor) and value.numel() != 1)
    if not number or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")


def check_names(
    given: Mapping[str, Any], known: Iterable[str], where: str, now: Callable[[str, Any], str | None]
) -> None:
    """Check that none of these is an option of a former release, or none at all.

    Args:
        given: names and values.
        known: names that there are.
        where: named in errors, such as "KFAC".
        now: (name, value) -> what became of an option of a former release, in words; None for other names.

    Raises:
        TypeError: says how the option is written now.
    """
    for name, value in given.items():
        if (said := now(name, value)) is not None:
            raise TypeError(f"{where}: {name} {said}")
        if name not in known:
            raise TypeError(f"{where} has no option {name!r}; there are {', '.join(known)}")


def check_same(groups: Sequence[Mapping[str, Any]], names: Iterable[str]) -> None:
    """Check that param groups do not differ in options that are global.

    Args:
        groups: an optimizer's.
        names: of these options; one that no group has is the same in all.

    Raises:
        ValueError: naming the option, and what the first group and another one have.
    """
    for name in names:
        first = groups[0].get(name)
        for index, group in enumerate(groups):
            if group.get(name) != first:
                raise ValueError(
                    f"{name} must be the same in all param groups: group 0 has {first!r}, group {index} has "
                    f"{group.get(name)!r}"
                )


def trainable_size(group: Mapping[str, Any]) -> int:
    """How many entries of the flat vectors belong to a param group."""
    return sum(p.numel() for p in group["params"] if p.requires_grad)


def per_parameter(groups: Sequence[Mapping[str, Any]], name: str, space: ParameterSpace) -> float | Tensor:
    """A per-group number: one float where the groups agree, else one per entry of the flat vectors [P]."""
    values = [float(group[name]) for group in groups]
    if len(set(values)) == 1:
        return values[0]
    sizes = torch.tensor([trainable_size(group) for group in groups], device=space.device)
    return torch.tensor(values, dtype=space.dtype, device=space.device).repeat_interleave(sizes)


def defaults_of(optimizer: type, *others: str) -> dict[str, Any]:
    """The options of an optimizer's constructor with their defaults, but for others."""
    parameters = inspect.signature(optimizer.__init__).parameters
    left_out = ("self", "params", "base", *others)
    return {name: each.default for name, each in parameters.items() if name not in left_out}


def objective_of(closure: Any) -> Any:
    """The objective in what a step was given: itself, or inside the closure that a wrapper of torch's makes of it.

    Wrappers hand on `functools.partial(wrapper, ..., closure)`, or a function that wraps it and says so, in order to
    call it at a time of their own; a step evaluates the objective when it needs to.
    """
    if isinstance(closure, Objective):
        return closure
    inside = []
    if isinstance(closure, functools.partial):
        inside = [closure.func, *closure.args, *closure.keywords.values()]
    elif inspect.ismethod(closure) and closure.__name__ == "__call__":
        inside = [closure.__self__]
    elif inspect.isfunction(closure) and hasattr(closure, "__wrapped__"):
        inside = [vars(closure)["__wrapped__"]]
    found = [each for each in map(objective_of, inside) if isinstance(each, Objective)]
    return found[0] if len(found) == 1 else closure


def the_objective(objective: Objective | None, closure: Any, optimizer: str) -> Objective:
    """The objective of a step, whichever way it is handed over: torch's wrappers call `step(closure=objective)`.

    Raises:
        TypeError: both are given, or neither.
    """
    if objective is not None and closure is not None and objective is not closure:
        raise TypeError(
            f"{optimizer}.step got an objective and a closure; give one, step(closure=objective) being the same"
        )
    if objective is None and closure is None:
        raise TypeError(
            f"{optimizer}.step needs an Objective, got none. Write\n"
            "    objective = Objective(model, loss, (inputs, targets))\n"
            "    optimizer.step(objective)\n"
            "A wrapper that calls step() without one, as torch.amp.GradScaler.step does, cannot drive it: call it "
            "yourself; there is no loss scale to take care of"
        )
    given: Any = objective_of(closure if objective is None else objective)
    return given  # `check_objective` looks at what it is


def check_objective(objective: Any, first: Any, optimizer: str = "HessianFree") -> None:
    """Check that this is an objective, of the same model and the same ranks as the first one of a step.

    Raises:
        TypeError: a plain closure or anything else; shows what to write instead.
        ValueError: another model or another process group.
    """
    if not isinstance(objective, Objective):
        raise TypeError(
            f"{optimizer}.step needs an Objective, got {type(objective).__name__}: a closure has no curvature. Write\n"
            "    objective = Objective(model, loss, (inputs, targets))\n"
            "    optimizer.step(objective)\n"
            "or Objective.from_forward(model, lambda: (loss, outputs)) for any other function"
        )
    if objective.model is not first.model:
        raise ValueError("objective, evaluation and curvature_objective must be of the same model")
    if objective.process_group is not first.process_group:
        raise ValueError("objective, evaluation and curvature_objective must have the same process_group")
