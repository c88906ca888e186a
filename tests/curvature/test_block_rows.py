"""Products over blocks where rows depend on one another: weakly, or only from a later step on.

Some ways of computing products need rows that do not depend on one another. What decides it must not be the numbers of
one moment: a coupling that is zero where a model starts (a gate, a scale or a last layer that begins at zero, the flat
side of a ReLU) is there from the next step on.
"""

from collections.abc import Callable

import pytest
import torch
from block_networks import Between
from block_oracle import EXPECTED, check, dense_ggn, objective_of, partitions, trainable
from dense_oracle import relative
from product_cases import CLASSES, IMAGES, REALS, VECTORS, Case, seeded
from torch import Tensor, nn


class Gated(nn.Module):
    """A narrow code that gains `gate` times a mixture of its rows."""

    def __init__(self, gate: float = 0.0, mix: Callable[[Tensor], Tensor] = lambda h: h.mean(0).expand_as(h)):
        super().__init__()
        self.first, self.code, self.wide, self.last = (nn.Linear(*w) for w in ((4, 6), (6, 2), (2, 6), (6, 3)))
        self.mix = mix
        self.register_buffer("gate", torch.tensor(gate))

    def forward(self, x: Tensor) -> Tensor:
        h = self.code(torch.tanh(self.first(x)))
        return self.last(torch.tanh(self.wide(h + self.gate * self.mix(h))))


class ZeroScale(nn.Module):
    """A residual branch whose batch normalisation begins with the scale zero, as residual networks often do."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        return self.head(torch.relu(h + self.norm(self.branch(h))).mean((2, 3)))


def zero_head() -> nn.Module:
    model = Between(lambda x: x - x.mean(0), width=2)
    nn.init.zeros_(model.last.weight)
    return model


def one_row(h: Tensor) -> Tensor:
    """Row 3 added to row 7; the others stay."""
    return torch.zeros_like(h).index_add(0, torch.tensor([7]), h[3:4])


BEGINS = {
    "gate": (Case(Gated, nn.CrossEntropyLoss()), lambda model: model.gate.fill_(0.7)),
    "zero_scale": (
        Case(ZeroScale, nn.CrossEntropyLoss(), inputs=IMAGES),
        lambda model: nn.init.normal_(model.norm.weight, generator=torch.Generator().manual_seed(1)),
    ),
    "zero_head": (
        Case(zero_head, nn.CrossEntropyLoss()),
        lambda model: nn.init.normal_(model.last.weight, generator=torch.Generator().manual_seed(1)),
    ),
}


@pytest.mark.parametrize("name", BEGINS)
def test_a_coupling_that_begins_later(name):
    case, begin = BEGINS[name]
    model = case.model()
    for _ in range(2):
        for expected in EXPECTED:
            check(objective_of(case, model), dense_ggn(case, model), partitions(model)["layers"], expected)
        begin(model)


def test_a_loss_whose_coupling_begins_later():
    """The flat side of a ReLU, then the other one: the targets decide."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return (z - y).square().sum() + torch.relu(z.mean(0) - y[0]).square().sum()

    model = seeded(Gated)
    for targets in (torch.full_like(REALS, 9.0), torch.full_like(REALS, -9.0)):
        case = Case(Gated, loss, targets=targets)
        for expected in EXPECTED:
            check(objective_of(case, model), dense_ggn(case, model), partitions(model)["layers"], expected)


@pytest.mark.parametrize("mix", [lambda h: h.mean(0).expand_as(h), one_row], ids=["mean", "one_row"])
@pytest.mark.parametrize(("gate", "dtype"), [(1e-2, torch.float32), (1e-2, torch.float64), (1e-6, torch.float64)])
def test_a_weak_coupling(gate, dtype, mix):
    case = Case(lambda: Gated(gate, mix), nn.CrossEntropyLoss())
    model = case.model()
    matrix = dense_ggn(case, model)
    narrow = Case(case.build, case.loss, VECTORS.to(dtype), CLASSES)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]  # as for all other networks
    for expected in EXPECTED:
        check(objective_of(narrow, model.to(dtype)), matrix, partitions(model)["layers"], expected, tolerance)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: (z[:-1] * z[1:]).sin().sum() + (z - y).square().sum(),
        lambda z, y: (z - y).mean(0).square().sum(),
        lambda z, y: z.var(0).log().sum(),
        lambda z, y: nn.functional.cross_entropy(z @ z.t(), torch.arange(len(z))),
    ],
    ids=["neighbours", "mean", "variance", "contrastive"],
)
def test_losses_that_couple_rows(loss):
    case = Case(Gated, loss, targets=REALS)
    model = case.model()
    for expected in EXPECTED:
        check(objective_of(case, model), dense_ggn(case, model), partitions(model)["layers"], expected)


def test_the_coupling_matters():
    """Else this would show nothing: without the coupling the matrix is another, by much more than the tolerances."""
    coupled, plain = (seeded(lambda gate=gate: Gated(gate)) for gate in (1e-2, 0.0))
    case = Case(Gated, nn.CrossEntropyLoss())
    assert len(trainable(coupled)) == len(trainable(plain)) == 8
    assert relative(dense_ggn(case, coupled), dense_ggn(case, plain)) > 1e-3
