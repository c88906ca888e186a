"""Squared gradients of single examples: which models, and what stays as it was; loops in float64 beside it."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dense_oracle import relative
from precond_cases import CLASSES, INPUTS, ROWS, TIGHT, by_loop, inputs, labels, network
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.preconditioners import EmpiricalFisher, example_gradients
from latephase.curvature.preconditioners.dense_layers import dense_squares

TOTAL_CE = functools.partial(F.cross_entropy, reduction="sum")
ONES = torch.ones(ROWS, dtype=torch.float64)


Y = labels(ROWS)


def diagonal(model, loss, data, **options: Any) -> Tensor:
    curved = linearize(Objective(model, loss, data, **options))
    return EmpiricalFisher().estimate(curved, [curved.space.size])["diagonal"]


class Recurrent(nn.Module):
    """vmap refuses torch's recurrent layers."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.cell = kind(INPUTS, 4, batch_first=True)
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


class Branching(nn.Module):
    """Control flow that depends on data."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(INPUTS, CLASSES), nn.Linear(INPUTS, CLASSES)

    def forward(self, x):
        return torch.cat([self.one(row) if row[:, 0].sum() > 0 else self.two(row) for row in x.split(1)])


class Reading(nn.Module):
    """An embedding and attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=0, sparse=True)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.out(self.block(self.embed(x)).mean(1))


@pytest.fixture(autouse=True)
def nothing_refused(monkeypatch):
    """Each test starts as a fresh process does."""
    monkeypatch.setattr(example_gradients, "_warned", False)


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(12, CLASSES),
    )  # fmt: skip


def data_of(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(4)
    made: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
        "conv": (conv, inputs(ROWS, 1, 4, 4)),
        "lstm": (Recurrent, inputs(ROWS, 5, INPUTS)),
        "gru": (functools.partial(Recurrent, nn.GRU), inputs(ROWS, 5, INPUTS)),
        "branching": (Branching, inputs(ROWS, INPUTS)),
        "attention": (Reading, labels(ROWS, 5, classes=7)),
    }
    build, x = made[kind]
    return build().double(), x


@pytest.mark.parametrize(("kind", "refused"), [
    ("conv", False), ("attention", False), ("lstm", True), ("gru", True), ("branching", True),
])  # fmt: skip
def test_models_against_a_loop(kind, refused, unchanged, recwarn):
    model, x = data_of(kind)
    model.eval()
    if kind == "attention":
        model.train()  # without dropout it is the same function, without the fast path
    dense = data_of(kind)[0].train(model.training)
    if kind == "attention":
        dense.embed.sparse = False
    expected = by_loop(dense, TOTAL_CE, x, Y, ONES / ROWS)
    objective = Objective(model, nn.CrossEntropyLoss(), (x, Y))
    curved = linearize(objective)
    recwarn.clear()
    with unchanged(model, generator=True):
        found = [EmpiricalFisher().estimate(curved, [curved.space.size])["diagonal"] for _ in range(2)]
    assert relative(found[0], expected) < TIGHT
    assert torch.equal(*found)
    said = [str(w.message) for w in recwarn if "example by example" in str(w.message)]
    assert len(said) == (1 if refused else 0)
    assert all("vmap" in message and type(model).__name__ in message for message in said)


def test_an_error_of_the_program_itself_is_raised():
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs(ROWS, INPUTS).float(), Y))
    curved = linearize(objective)
    objective.program.forward = lambda model, inputs: model(inputs[:, :2])
    with pytest.raises(RuntimeError, match="shapes"):
        EmpiricalFisher().estimate(curved, [curved.space.size])


def test_batch_norm_in_training_runs_on_its_running_statistics(unchanged):
    model, x = data_of("conv")
    model[1].running_mean.uniform_()
    expected = by_loop(model.eval(), TOTAL_CE, x, Y, ONES / ROWS)
    curved = linearize(Objective(model.train(), nn.CrossEntropyLoss(), (x, Y)))
    with unchanged(model, generator=True):
        found = EmpiricalFisher().estimate(curved, [curved.space.size])["diagonal"]
    assert relative(found, expected) < TIGHT


def test_batch_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES), nn.BatchNorm1d(CLASSES, track_running_stats=False)).double()
    curved = linearize(Objective(model, nn.CrossEntropyLoss(), (inputs(ROWS, INPUTS), Y)))
    with pytest.raises(ValueError, match=r"'1'.*ggn_diagonal"):
        EmpiricalFisher().estimate(curved, [curved.space.size])


def test_dropout_draws_a_mask_for_each_example(unchanged):
    """With one weight per input and inputs one, squares are zero or four times as large: masks differ by row."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 1, bias=False)).double()
    x = torch.ones(64, 40, dtype=torch.float64)
    nn.init.zeros_(model[1].weight)
    curved = linearize(Objective(model, nn.MSELoss(), (x, torch.ones(64, 1, dtype=torch.float64))))
    with unchanged(model, generator=True):
        found = EmpiricalFisher().estimate(curved, [40])["diagonal"]
    counts = found / 16 * 64  # gradients are -2 * 2 where the mask lets through
    torch.testing.assert_close(counts, counts.round())
    assert 16 < float(counts.min()) < float(counts.max()) < 48


def test_inputs_of_several_tensors_and_what_is_no_tensor():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, scale, power):
            return self.net(x * scale**power)

    model, x, scale = Two(), inputs(ROWS, INPUTS), torch.tensor(0.5, dtype=torch.float64)
    expected = by_loop(model.net, TOTAL_CE, x * 0.25, Y, ONES / ROWS)
    given = {"x": x, "scale": scale, "power": 2}
    assert relative(diagonal(model, nn.CrossEntropyLoss(), (given, Y)), expected) < TIGHT


class Awkward(nn.Module):
    """Linear layers that one pass over the whole chunk must leave alone, and one that it may take."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(INPUTS, INPUTS)
        self.first, self.second = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS)
        self.second.weight = self.first.weight
        self.sequence = nn.Linear(1, 2)
        self.folded = nn.Linear(2, 2)
        self.halved = nn.utils.parametrizations.weight_norm(nn.Linear(INPUTS, INPUTS))
        self.plain = nn.Linear(2 * INPUTS, CLASSES)

    def forward(self, x):
        h = self.twice(self.twice(x).tanh())
        h = self.halved(self.second(self.first(h).tanh()).tanh())
        h = self.sequence(h.unsqueeze(-1))
        h = self.folded(h.reshape(-1, 2)).reshape(len(x), -1)
        return nn.functional.relu(self.plain(h), inplace=True)


def test_linear_layers_that_are_shared_or_see_other_rows():
    torch.manual_seed(0)
    model, x = Awkward().double(), inputs(ROWS, INPUTS)
    expected = by_loop(model, TOTAL_CE, x, Y, ONES / ROWS)
    assert relative(diagonal(model, nn.CrossEntropyLoss(), (x, Y)), expected) < TIGHT
    objective = Objective(model, nn.CrossEntropyLoss(), (x, Y))
    taken = dense_squares(objective, objective.space(), objective.chunks[0], ONES, 0)
    assert set(taken) == {"plain.weight", "plain.bias", "halved.bias"}


def test_parameters_outside_the_space_are_constants_and_unused_ones_zero():
    model = network()
    model[0].weight.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    x = inputs(ROWS, INPUTS)
    objective = Objective(model, nn.CrossEntropyLoss(), (x, Y))
    curved = linearize(objective, parameters=[model[2].weight, model.unused])
    found = EmpiricalFisher().estimate(curved, [curved.space.size])["diagonal"]
    full = by_loop(network(), TOTAL_CE, x, Y, ONES / ROWS)
    expected = torch.cat([full[INPUTS * 5 + 5 :][: 5 * CLASSES], torch.zeros(3, dtype=torch.float64)])
    assert relative(found, expected) < TIGHT


def test_half_precision_is_squared_in_single():
    model = network().to(torch.bfloat16)
    curved = linearize(Objective(model, nn.CrossEntropyLoss(), (inputs(ROWS, INPUTS).to(torch.bfloat16), Y)))
    found = EmpiricalFisher().estimate(curved, [curved.space.size])["diagonal"]
    assert found.dtype == torch.float32
    exact = by_loop(network(), TOTAL_CE, inputs(ROWS, INPUTS), Y, ONES / ROWS)
    assert relative(found.double(), exact) < 0.05  # eight bits, squared


def test_an_objective_without_examples_is_refused():
    model = network()
    x = inputs(ROWS, INPUTS)

    def forward():
        outputs = model(x)
        return F.cross_entropy(outputs, Y), outputs

    curved = linearize(Objective.from_forward(model, forward))
    with pytest.raises(ValueError, match="'ggn_diagonal' or 'nystrom'"):
        EmpiricalFisher().estimate(curved, [curved.space.size])


def test_the_piece_follows_the_memory(monkeypatch):
    model = network()
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs(ROWS, INPUTS), Y))
    space = objective.space()
    size = 100
    each = example_gradients.COPIES * 8 * size
    for free, expected in ((0, 1), (4 * each * 7, 7), (10**15, example_gradients.MOST_ROWS)):
        monkeypatch.setattr(example_gradients, "available", lambda device, free=free: free)
        assert example_gradients.rows_at_once(objective, space, size) == expected
    assert example_gradients.rows_at_once(objective, space, 10**7) == 1
    limited = Objective(model, nn.CrossEntropyLoss(), (inputs(ROWS, INPUTS), Y), memory_limit=3 * each)
    assert example_gradients.rows_at_once(limited, space, size) == 3
