"""A way to go on from a state: an optimizer, the data that its steps want, what becomes of its rate."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.nn import Parameter
from torch.optim import Optimizer

from .averages import StateAverage, TailAverage

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


def linear(share: float) -> float:
    """The factor 1 - share of a rate that falls to zero at a constant pace, after a share of what is left."""
    return 1 - min(share, 1.0)


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
        average: () -> the average of its states that is looked at beside the last state, and held where it is better;
            True for one in which newer states count more (`TailAverage`), False for none.
        training: whether the model is in the mode in which the base trains it, dropout drawing and statistics moving.
            False puts it into eval mode for its steps, as second-order steps want it.
    """

    name: str
    make: Make | None = None
    wants: Wants = ALL_ROWS
    schedule: Schedule | None = None
    average: bool | Callable[[], StateAverage] = False
    training: bool = False

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a contestant's name must be a text, got {self.name!r}")
        if self.make is not None and not callable(self.make):
            raise TypeError(f"make of the contestant {self.name} must be a function of parameters, got {self.make!r}")
        if not isinstance(self.average, bool) and not callable(self.average):
            raise TypeError(
                f"average of the contestant {self.name} must be True, False or a function that makes one, got "
                f"{self.average!r}"
            )
        object.__setattr__(self, "wants", Wants(*self.wants))
        rows, evaluation, curvature = self.wants
        for what, size in (("rows", rows), ("evaluation", evaluation), ("curvature", curvature)):
            least = 0 if what == "evaluation" else 1
            if size is not None and not (type(size) is int and size >= least):
                raise ValueError(f"the contestant {self.name} wants {what}={size!r}: it must be a number of rows")

    def optimizer(self, base: Optimizer) -> Any:
        """Its optimizer of the base's parameters; the base itself where it makes none."""
        return base if self.make is None else self.make(parameters_of(base))

    def new_average(self) -> StateAverage | None:
        """The average of its states, of none as yet; None where it has none."""
        if isinstance(self.average, bool):
            return TailAverage() if self.average else None
        return self.average()


def parameters_of(optimizer: Optimizer) -> list[Parameter]:
    """The parameters of all groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def twin(optimizer: Optimizer) -> Any:
    """An optimizer of the same parameters with a state of its own, which is equal: where two go on from one base."""
    memo: dict[int, Any] = {id(p): p for p in parameters_of(optimizer)}
    own = {name: value for name, value in vars(optimizer).items() if name != "step"}  # schedulers wrap the other's step
    other = object.__new__(type(optimizer))
    vars(other).update(copy.deepcopy(own, memo))
    return other
