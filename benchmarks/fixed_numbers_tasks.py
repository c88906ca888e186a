"""The functions that `fixed_numbers.py` minimises: small, in float64, the same at every call.

Shipped problems come from `latephase.problems`; what is built here beside them uses nothing but torch and this
library's layers.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from latephase import Objective, problems
from latephase.problems.architectures import Transformer

Data = Any


@dataclass(frozen=True)
class Task:
    """A function to minimise, and its data by step.

    Attributes:
        model: () -> network, from torch's default generator.
        loss: (outputs, targets) -> scalar.
        data: step -> the batch, and other data of the same kind that judges the step.
        weight_decay: as in `Objective`.
        forward: as in `Objective`.
    """

    model: Callable[[], nn.Module]
    loss: Callable[[Any, Tensor], Tensor]
    data: Callable[[int], tuple[Data, Data]]
    weight_decay: Any = 0.0
    forward: Callable[[nn.Module, Any], Any] | None = None

    def objective(self, model: nn.Module, data: Data, **options: Any) -> Objective:
        """The loss on these data, in the model's dtype."""
        dtype = next(model.parameters()).dtype
        data = tree_map(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, data)
        options = {"weight_decay": self.weight_decay, "forward": self.forward} | options
        return Objective(model, self.loss, data, **options)


class Characters(nn.Module):
    """A transformer whose logits are [N, vocabulary, T], as `nn.CrossEntropyLoss` takes them."""

    def __init__(self):
        super().__init__()
        self.transformer = Transformer(12, layers=1, width=16, heads=2, context=10)

    def forward(self, symbols: Tensor) -> Tensor:
        """Symbols [N, T] -> logits [N, vocabulary, T]."""
        return self.transformer(symbols).transpose(1, 2)


def random(step: int) -> torch.Generator:
    """The randomness of a step's data."""
    return torch.Generator().manual_seed(1000 + step)


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """The training split of the digits."""
    problem = problems.get("digits")
    return problem.batch(problem.load().train)


def digits_of(rows: int, judging: int) -> Callable[[int], tuple[Data, Data]]:
    """Fresh digits for each step, and others that judge it."""

    def data(step: int) -> tuple[Data, Data]:
        inputs, targets = digits()
        chosen = torch.randperm(len(targets), generator=random(step))[: rows + judging]
        batch, others = chosen.split([rows, judging])
        return (inputs[batch], targets[batch]), (inputs[others], targets[others])

    return data


def small_network(*between: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Digits -> logits, with one hidden layer of 12 tanh units; `between` stands in front of these."""
    return lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), *(make() for make in between), nn.Tanh(), nn.Linear(12, 10)
    )


def texts(step: int) -> tuple[Data, Data]:
    """Texts over twelve symbols of uneven frequency, each the last one or a new one."""
    frequencies = 1 / torch.arange(1, 13)
    symbols = torch.multinomial(frequencies, 40 * 11, replacement=True, generator=random(step)).view(40, 11)
    repeated = torch.rand(40, 11, generator=random(step)) < 0.5
    symbols = torch.where(repeated, symbols.roll(1, dims=1), symbols)
    parts = [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in symbols.split([24, 16])]
    return parts[0], parts[1]


def recurrent() -> Task:
    """The shipped addition problem at its shortest, with pre-activations for structural damping."""
    problem = problems.get("rnn_addition", length=10, units=20)
    rows = problem.load().train

    def data(step: int) -> tuple[Data, Data]:
        inputs, targets = problem.batch(rows, slice(0, 48), random(step))
        return (inputs[:32], targets[:32]), (inputs[32:], targets[32:])

    return Task(problem.model, problem.loss, data, problem.weight_decay, problem.forward)


def physics(name: str, interior: int = 120) -> Task:
    """A shipped physics-informed problem, of width 8, on a part of its points; other points judge."""
    problem = problems.get(name, width=8)
    everything = problem.batch(problem.load().train)

    def part(start: int) -> Data:
        rows = slice(start, start + interior)
        return [tree_map(lambda t: t[rows] if isinstance(t, Tensor) and t.dim() else t, each) for each in everything]

    first = everything[1:]
    batch, judging = [part(0)[0], *first], [part(interior)[0], *first]
    return Task(problem.model, problem.loss, lambda step: (batch, judging), problem.weight_decay, problem.forward)


@functools.cache
def task(name: str) -> Task:
    """A task by name."""
    return TASKS[name]()


_CROSS_ENTROPY = nn.CrossEntropyLoss()
DECAY = (5e-4, lambda name, parameter: name.endswith("weight"))


def _digits(*between: Callable[[], nn.Module]) -> Callable[[], Task]:
    return lambda: Task(small_network(*between), _CROSS_ENTROPY, digits_of(128, 64), DECAY)


def _convolutions() -> Task:
    problem = problems.get("digits")
    return Task(problem.model, problem.loss, digits_of(32, 32), problem.weight_decay, problem.forward)


TASKS: dict[str, Callable[[], Task]] = {
    "digits": _convolutions,
    "small": _digits(),
    "dropout": _digits(lambda: nn.Dropout(0.2)),
    "batch_norm": _digits(lambda: nn.BatchNorm1d(12)),
    "transformer": lambda: Task(Characters, _CROSS_ENTROPY, texts, 1e-4),
    "recurrent": recurrent,
    "convection": lambda: physics("pinn_convection"),
    "reaction": lambda: physics("pinn_reaction"),
}
"""By name; the first is the shipped network on digits, "small" one of a thousand parameters for the many options."""
