"""A way to go on from a state: an optimizer, the data that its steps want, what becomes of its rate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.nn import Parameter
from torch.optim import Optimizer

Make = Callable[[Sequence[Parameter]], Optimizer]
Schedule = Callable[[float], float]


class Wants(NamedTuple):
    """Data that a step is to be given, in rows.

    Attributes:
        rows: of the objective; None for all rows there are.
        evaluation: of the objective that judges the step, none of them in the first; 0 where none is needed.
        curvature: how many of `rows` the curvature is taken on; None for all of them.
    """

    rows: int | None = None
    evaluation: int = 0
    curvature: int | None = None


ALL_ROWS = Wants()


def cosine(share: float) -> float:
    """The factor of a rate that falls to zero along half a cosine, after a share of what is left."""
    return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def one_minus_sqrt(share: float) -> float:
    """The factor 1 - sqrt(share) of a cooldown (Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training")."""
    return 1 - math.sqrt(min(share, 1.0))


@dataclass(frozen=True)
class Contestant:
    """A way to go on from a state.

    Attributes:
        name: what reports call it.
        make: parameters -> the optimizer, whose `step(objective)` takes a step; it gets the objective as its closure,
            which sets `.grad` and returns the loss, and where `wants` says so `evaluation` and `curvature_objective`
            beside it. None for the base optimizer as it is, its state included.
        wants: data of each step.
        schedule: share in [0, 1] of what was left at the hand-over -> factor on the optimizer's rates. None leaves the
            rates to the optimizer.
        average: whether an average of its newer states is looked at beside the last state, and held where it is better.
        training: whether the model is in the mode in which the base trains it, dropout drawing and statistics moving.
            False puts it into eval mode for its steps, as second-order steps want it.
    """

    name: str
    make: Make | None = None
    wants: Wants = ALL_ROWS
    schedule: Schedule | None = None
    average: bool = False
    training: bool = False

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a contestant's name must be a text, got {self.name!r}")
        if self.make is not None and not callable(self.make):
            raise TypeError(f"make of the contestant {self.name} must be a function of parameters, got {self.make!r}")
        object.__setattr__(self, "wants", Wants(*self.wants))
        rows, evaluation, curvature = self.wants
        for what, size in (("rows", rows), ("evaluation", evaluation), ("curvature", curvature)):
            least = 0 if what == "evaluation" else 1
            if size is not None and not (type(size) is int and size >= least):
                raise ValueError(f"the contestant {self.name} wants {what}={size!r}: it must be a number of rows")

    def optimizer(self, base: Optimizer) -> Any:
        """Its optimizer of the base's parameters; the base itself where it makes none."""
        if self.make is None:
            return base
        return self.make([p for group in base.param_groups for p in group["params"]])
