"""Models, losses and batches in float64, and the comparison of `linearize` with their dense matrices."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from dense_oracle import Dense, dense_oracle, relative
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import Linearization, linearize

# A product is compared relative to the largest entry expected. 1e-10 is some 1e5 roundings: the sums here are short, so
# an agreement worse than that is an error of the formula, never of the arithmetic.
TIGHT = 1e-10
REFUSAL = re.compile("forward mode|differentiate|in place|random|double_backward|traced|tracing tensor")
METHODS = ["auto", "traced", "linearize", "double_backward"]
# The Hessian has no "linearize": torch.func.linearize of a gradient ends the process for some losses (torch 2.13).
PRODUCTS = [
    *(("ggn", method) for method in METHODS),
    *(("hessian", method) for method in METHODS if method != "linearize"),
]
CURVATURES = ["ggn", "hessian"]
ROWS = 11
CHUNKS = [3, 1, 5, 2]
"""Four unequal chunks; one of a single row."""


# ---------------------------------------------------------------------------------------------------------------------
# Models


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A float64 model whose initial values depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))


def normalized() -> nn.Module:
    """Batch normalisation with running statistics, scale and shift all away from their initial values."""
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.randn(5))
    norm.running_var.copy_(torch.rand(5) + 0.5)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(5) + 0.5)
        norm.bias.copy_(torch.randn(5))
    return model.eval()


def tied() -> nn.Module:
    """An autoencoder whose decoder uses the encoder's weight."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def shared_module() -> nn.Module:
    """A module that stands in two places, so that its parameters have two names."""
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 3))


def sequence() -> nn.Module:
    """Outputs [N, C, L], as cross-entropy over positions takes them."""
    return nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv1d(3, 3, 1))


def frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    return model


class Unused(nn.Module):
    """A network with a parameter that the forward pass does not use, between two that it does."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.last = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(inputs)))


class TwoInputs(nn.Module):
    """A network of two inputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(self.a(a)) * self.b(b)


class Recurrent(nn.Module):
    """A cell used three times: one parameter with several places in the graph."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.Linear(5, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.zeros_like(inputs[:, :3])
        for step in (inputs[:, :2], inputs[:, 1:3], inputs[:, 2:]):
            hidden = torch.tanh(self.cell(torch.cat([step, hidden], dim=1)))
        return self.head(hidden)


# ---------------------------------------------------------------------------------------------------------------------
# Cases

CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1, 0, 0, 1])
SOME_IGNORED = torch.tensor([0, -100, 1, 1, 0, 2, -100, 1, 0, -100, 1])
CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)
IMAGES = randn(ROWS, 1, 4, 4, seed=1)
VECTORS = randn(ROWS, 4, seed=2)
REALS = randn(ROWS, 3, seed=3)
BITS = (randn(ROWS, 3, seed=4) > 0).double()
SHARES = torch.softmax(randn(ROWS, 3, seed=5), dim=1)
POSITIONS = torch.randint(0, 3, (ROWS, 4), generator=torch.Generator().manual_seed(6))
POSITIONS[randn(ROWS, 4, seed=7) > 0.8] = -100


@dataclass(frozen=True)
class Case:
    """A model, a loss and a batch; `chunked` tells whether the loss names a reduction, so that chunks have weights."""

    build: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: Any = field(default_factory=lambda: VECTORS)
    targets: Tensor = field(default_factory=lambda: CLASSES)
    forward: Callable | None = None
    chunked: bool = True

    def model(self) -> nn.Module:
        return seeded(self.build)

    def options(self) -> dict[str, Any]:
        return {} if self.forward is None else {"forward": self.forward}

    def rows(self, begin: int, end: int) -> tuple[Any, Tensor]:
        inputs = self.inputs
        part = {k: v[begin:end] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[begin:end]
        return part, self.targets[begin:end]

    def chunks(self) -> list[tuple[Any, Tensor]]:
        ends = torch.tensor(CHUNKS).cumsum(0).tolist()
        return [self.rows(end - size, end) for size, end in zip(CHUNKS, ends, strict=True)]


CASES = {
    "cross_entropy": Case(mlp, nn.CrossEntropyLoss()),
    "cross_entropy_sum": Case(mlp, nn.CrossEntropyLoss(reduction="sum")),
    "cross_entropy_weights": Case(mlp, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)),
    "cross_entropy_smoothing": Case(mlp, nn.CrossEntropyLoss(label_smoothing=0.1)),
    "cross_entropy_smoothing_weights": Case(mlp, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.1)),
    "cross_entropy_smoothing_weights_sum": Case(
        mlp, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.1, reduction="sum")
    ),
    "cross_entropy_ignore": Case(mlp, nn.CrossEntropyLoss(label_smoothing=0.1), targets=SOME_IGNORED),
    "cross_entropy_ignore_weights": Case(
        mlp, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=0), targets=CLASSES
    ),
    "cross_entropy_shares": Case(mlp, nn.CrossEntropyLoss(), targets=SHARES),
    "cross_entropy_shares_weights": Case(mlp, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), targets=SHARES),
    "cross_entropy_positions": Case(
        sequence, nn.CrossEntropyLoss(), inputs=randn(ROWS, 2, 4, seed=8), targets=POSITIONS
    ),
    "squared_error": Case(mlp, nn.MSELoss(), targets=REALS),
    "squared_error_sum": Case(mlp, nn.MSELoss(reduction="sum"), targets=REALS),
    "binary": Case(mlp, nn.BCEWithLogitsLoss(), targets=BITS),
    "binary_sum": Case(mlp, nn.BCEWithLogitsLoss(reduction="sum"), targets=BITS),
    "binary_weights": Case(
        mlp, nn.BCEWithLogitsLoss(weight=CLASS_WEIGHTS, pos_weight=CLASS_WEIGHTS.flip(0)), targets=SHARES
    ),
    "smooth_l1": Case(mlp, nn.SmoothL1Loss(beta=10.0), targets=REALS),
    "convolution": Case(convolution, nn.CrossEntropyLoss(), inputs=IMAGES),
    "batch_norm_eval": Case(normalized, nn.CrossEntropyLoss()),
    "tied": Case(tied, nn.MSELoss(), targets=VECTORS),
    "shared_module": Case(shared_module, nn.CrossEntropyLoss()),
    "recurrent": Case(Recurrent, nn.CrossEntropyLoss()),
    "frozen_layer": Case(frozen, nn.CrossEntropyLoss()),
    "unused_parameter": Case(Unused, nn.CrossEntropyLoss()),
    "dict_inputs": Case(
        TwoInputs,
        nn.CrossEntropyLoss(),
        inputs={"a": VECTORS, "b": randn(ROWS, 2, seed=9)},
        forward=lambda model, inputs: model(inputs["a"], inputs["b"]),
    ),
    "lambda": Case(mlp, lambda z, y: ((z - y) ** 4).mean(), targets=REALS, chunked=False),
    "lambda_coupling_rows": Case(
        mlp, lambda z, y: torch.sqrt(1.0 + ((z - y) ** 2).sum()), targets=REALS, chunked=False
    ),
    "lambda_linear": Case(mlp, lambda z, y: (z * y).mean(), targets=REALS, chunked=False),
}
CHUNKED = [name for name, case in CASES.items() if case.chunked]


@cache
def oracle(name: str) -> Dense:
    case = CASES[name]
    options = {} if case.forward is None else {"forward": case.forward}
    return dense_oracle(case.model(), case.loss, case.inputs, case.targets, **options)


def check_against(objective: Objective, expected: Dense, curvature: str, method: str = "auto", **options) -> None:
    """Loss, gradient, and products with random vectors; the quadratic form of each.

    Both rungs of "auto" are compared: a shape that is seen for the first time, and the trace from the second time on.
    """
    _check_one(linearize(objective, curvature=curvature, method=method, **options), expected, curvature)
    if method == "auto":
        again = linearize(objective, curvature=curvature, method=method, **options)
        _check_one(again, expected, curvature)
        # Either it is traced, or it says what stands against that; by now every shape has been seen.
        assert again.method == "traced" or (again.reason and "first time" not in again.reason), again.reason


def _check_one(linearization: Linearization, expected: Dense, curvature: str) -> None:
    assert linearization.loss.shape == ()
    assert relative(linearization.loss.detach(), expected.loss) < TIGHT
    assert relative(linearization.gradient.detach(), expected.gradient) < TIGHT
    matrix = expected.matrix(curvature)
    for seed in (100, 101, 100):
        v = randn(len(matrix), seed=seed)
        product = linearization.matvec(v)
        # Relative to the matrix: the GGN of a loss linear in the outputs is zero, and then the product is zero exactly.
        if bool(matrix.any()):
            assert relative(product, matrix @ v) < TIGHT
        else:
            assert not product.any()
        form = float(v @ matrix @ v)
        assert float(linearization.quadratic_form(v)) == pytest.approx(form, rel=TIGHT, abs=TIGHT * float(v @ v))


def check_or_refusal(objective: Objective, expected: Dense, curvature: str, method: str, **options) -> None:
    """As `check_against`; but a method asked for by name may refuse a network in words, never give a wrong number."""
    try:
        check_against(objective, expected, curvature, method, **options)
    except RuntimeError as refusal:
        assert method != "auto"
        assert REFUSAL.search(str(refusal)), refusal  # noqa: PT017
