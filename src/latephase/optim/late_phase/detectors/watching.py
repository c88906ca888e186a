"""What a detector sees of a step, and how it watches an optimizer take one."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ....objective import Objective
from .vectors import Tensors


@dataclass(frozen=True)
class Seen:
    """The parameters that are trained, with their gradients and learning rates.

    Attributes:
        groups: of each param group those that require a gradient, all where none does, without their graph.
        gradients: of these parameters, group by group; None for those that have none.
        rates: of the groups.
    """

    groups: list[list[Tensor]]
    gradients: list[list[Tensor | None]]
    rates: list[float]

    @property
    def parameters(self) -> Tensors:
        """Of all groups."""
        return [p for group in self.groups for p in group]

    @property
    def all_gradients(self) -> Tensors:
        """Of all groups."""
        return [g for group in self.gradients for g in group]

    @property
    def layout(self) -> list[list[int]]:
        """How many numbers each parameter has, group by group."""
        return [[p.numel() for p in group] for group in self.groups]


def seen(parameters: Iterable[Any], gradients: Iterable[Tensor | None] | None, lr: Any) -> Seen:
    """What there is to see.

    Args:
        parameters: tensors, or param groups with "params" and "lr" as an optimizer has them.
        gradients: one for each parameter; None stands for their `grad`.
        lr: one for all groups, or one for each; None stands for the groups' own, or 1.

    Raises:
        TypeError: parameters or gradients are something else.
        ValueError: not as many gradients or rates as needed, or a rate that is negative or not finite.
    """
    groups = _groups(parameters)
    rates = _rates(groups, lr)
    flat = [p for group in groups for p in group["params"]]
    given = [p.grad for p in flat] if gradients is None else list(gradients)
    if len(given) != len(flat):
        raise ValueError(f"gradients must be one for each of the {len(flat)} parameters, got {len(given)}")
    for p, g in zip(flat, given, strict=True):
        if g is not None and (not torch.is_tensor(g) or g.shape != p.shape):
            what = f"shape {list(g.shape)}" if torch.is_tensor(g) else type(g).__name__
            raise ValueError(
                f"a gradient must be None or a tensor of its parameter's shape {list(p.shape)}, got {what}"
            )
    rest = iter(given)
    pairs = [[(p, next(rest)) for p in group["params"]] for group in groups]
    plain = not any(p.requires_grad for p in flat)  # tensors that someone updates by hand
    trained = [[(p.detach(), g) for p, g in group if p.requires_grad or plain] for group in pairs]
    return Seen([[p for p, _ in group] for group in trained], [[g for _, g in group] for group in trained], rates)


def _groups(parameters: Iterable[Any]) -> list[Mapping[str, Any]]:
    if torch.is_tensor(parameters):
        raise TypeError("parameters must be a list of tensors or of param groups, got a single tensor")
    given = list(parameters)
    if not given:
        raise ValueError("parameters must not be empty")
    named: list[Mapping[str, Any]] = [{"params": given}]
    groups = given if all(isinstance(each, Mapping) for each in given) else named
    for p in (p for group in groups for p in group["params"]):
        if not torch.is_tensor(p):
            raise TypeError(f"parameters must be tensors or param groups, got {type(p).__name__} among them")
    return groups


def _rates(groups: Sequence[Mapping[str, Any]], lr: Any) -> list[float]:
    if lr is None:
        rates = [float(group.get("lr", 1.0)) for group in groups]
    elif isinstance(lr, Sequence):
        rates = [float(each) for each in lr]
    else:
        rates = [float(lr)] * len(groups)
    if len(rates) != len(groups):
        raise ValueError(f"lr must be one number, or one for each of the {len(groups)} param groups, got {len(rates)}")
    for rate in rates:
        if not 0 <= rate < float("inf"):
            raise ValueError(f"lr must be a finite number >= 0, got {rate}")
    return rates


class Watcher(Protocol):
    """What `Watch` tells of a step."""

    def start(self, parameters: Iterable[Any], *, lr: Any = None) -> None:
        """Told before each step."""

    def loss(self, value: Any) -> None:
        """Told where a step has a closure, which returned this."""

    def update(self, parameters: Iterable[Any]) -> bool:
        """Told after each step."""
        ...


class Watch:
    """The hooks by which a detector watches an optimizer; leave it by `remove()`, or use it in a `with` statement."""

    def __init__(self, detector: Watcher, optimizer: Optimizer):
        def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            detector.start(optimizer.param_groups)
            args = tuple(_telling(each, detector.loss) if _is_closure(each) else each for each in args)
            if _is_closure(kwargs.get("closure")):
                kwargs = {**kwargs, "closure": _telling(kwargs["closure"], detector.loss)}
            return args, kwargs

        def after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            reported = getattr(getattr(optimizer, "report", None), "loss", None)  # optimizers of this package
            if isinstance(reported, float):
                detector.loss(reported)
            detector.update(optimizer.param_groups)

        self._hooks: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
        ]

    @property
    def active(self) -> bool:
        """Whether it has not been removed."""
        return bool(self._hooks)

    def remove(self) -> None:
        """Watch no longer; the detector keeps what it knows."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def _is_closure(given: Any) -> bool:
    """Whether it is a closure: an objective is evaluated by its optimizer, and must stay what it is."""
    return callable(given) and not isinstance(given, (Objective, Optimizer))


def _telling(closure: Callable[[], Any], tell: Callable[[Any], None]) -> Callable[[], Any]:
    """The closure, telling what its first call returns: the loss at the parameters where the step began."""
    told = False

    @functools.wraps(closure)
    def telling() -> Any:
        nonlocal told
        value = closure()
        if not told and value is not None:
            told = True
            tell(value)
        return value

    return telling
