"""The diagonal of the empirical Fisher matrix against loops over single examples in float64."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dense_oracle import relative
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.preconditioners import EmpiricalFisher, example_gradients

ROWS, INPUTS, CLASSES = 11, 3, 4
TIGHT = 1e-12
"""Float64 on short sums: anything more is an error of the formula."""
WEIGHT = torch.tensor([0.3, 1.0, 2.0, 0.0], dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(outputs: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(1), dtype=torch.float64)


def labels(*shape: int, classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, shape, generator=generator(2))


def diagonal(model, loss, data, *, chunk=None, curvature="ggn", **options: Any) -> Tensor:
    curved = linearize(Objective(model, loss, data, **options), curvature)
    estimate = EmpiricalFisher(chunk=chunk).estimate(curved, [curved.space.size])
    assert list(estimate) == ["diagonal"]
    return estimate["diagonal"]


def by_loop(model: nn.Module, total: Callable[[Tensor, Tensor], Tensor], x, y, factors) -> Tensor:
    """Sum over the rows of factor times the squared gradient of the summed loss of that row."""
    squares = [torch.zeros_like(p) for p in model.parameters()]
    for row in range(len(y)):
        value = total(model(x[row : row + 1]), y[row : row + 1])
        gradients = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
        for square, gradient in zip(squares, gradients, strict=True):
            square += factors[row] * gradient**2
    return torch.cat([square.reshape(-1) for square in squares])


# ---------------------------------------------------------------------------------------------------------------------
# Weights: f = scale * sum of S_i, and D = scale * sum of S_i'^2 / (weight of a term in S_i)

Y = labels(ROWS)
IGNORED = torch.where(torch.arange(ROWS) % 4 == 1, -100, Y)
BY_CLASS = WEIGHT[Y]
REAL = inputs(ROWS, CLASSES).cos()
ONES = torch.ones(ROWS, dtype=torch.float64)
COUNTED = (IGNORED != -100).double()
INVERSE = torch.where(BY_CLASS > 0, 1 / BY_CLASS.clamp(min=1e-300), 0.0)
SHARES = torch.rand(ROWS, CLASSES, generator=generator(5), dtype=torch.float64).softmax(1)


def mine(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that does not say how it reduces."""
    return (outputs - targets).abs().pow(1.5).sum(1).mean()


def mine_summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().pow(1.5).sum()


TOTAL_CE = functools.partial(F.cross_entropy, reduction="sum")
WEIGHED_CE = functools.partial(F.cross_entropy, reduction="sum", weight=WEIGHT)
TOTAL_MSE = functools.partial(F.mse_loss, reduction="sum")
TOTAL_BCE = functools.partial(F.binary_cross_entropy_with_logits, reduction="sum")
CASES = {
    "cross entropy": (nn.CrossEntropyLoss(), Y, TOTAL_CE, ONES / ROWS),
    "functional": (F.cross_entropy, Y, TOTAL_CE, ONES / ROWS),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), Y, TOTAL_CE, ONES),
    "ignored": (nn.CrossEntropyLoss(), IGNORED, TOTAL_CE, COUNTED / COUNTED.sum()),
    "ignored, summed": (nn.CrossEntropyLoss(reduction="sum"), IGNORED, TOTAL_CE, COUNTED),
    "weights": (nn.CrossEntropyLoss(WEIGHT), Y, WEIGHED_CE, INVERSE / BY_CLASS.sum()),
    "weights, summed": (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), Y, WEIGHED_CE, INVERSE),
    "smoothing": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        Y,
        functools.partial(TOTAL_CE, label_smoothing=0.1),
        ONES / ROWS,
    ),
    "probabilities": (nn.CrossEntropyLoss(), SHARES, TOTAL_CE, ONES / ROWS),
    "squared error": (nn.MSELoss(), REAL, TOTAL_MSE, ONES / (ROWS * CLASSES)),
    "squared error, summed": (nn.MSELoss(reduction="sum"), REAL, TOTAL_MSE, ONES),
    "binary": (nn.BCEWithLogitsLoss(), SHARES, TOTAL_BCE, ONES / (ROWS * CLASSES)),
    "own mean": (mine, REAL, mine, ONES / ROWS),
    "own sum": (mine_summed, REAL, mine, ONES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_every_loss_against_a_loop(case, chunk):
    loss, targets, total, factors = CASES[case]
    x, model = inputs(ROWS, INPUTS), network()
    expected = by_loop(model, total, x, targets, factors)
    assert relative(diagonal(model, loss, (x, targets), chunk=chunk), expected) < TIGHT


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith("own")])
def test_chunks_are_the_whole(case):
    loss, targets, _, _ = CASES[case]
    x, model = inputs(ROWS, INPUTS), network()
    whole = diagonal(model, loss, (x, targets), weight_decay=0.1)
    chunked = diagonal(model, loss, (x, targets), weight_decay=0.1, microbatch_size=4, chunk=3)
    assert relative(chunked, whole) < TIGHT


def test_a_chunk_without_targets_that_count_adds_zero():
    x, y, model = inputs(ROWS, INPUTS), Y.clone(), network()
    y[:4] = -100
    whole = diagonal(model, nn.CrossEntropyLoss(), (x, y))
    assert whole.isfinite().all()
    assert relative(diagonal(model, nn.CrossEntropyLoss(), (x, y), microbatch_size=4), whole) < TIGHT


def test_several_chunks_need_the_reduction():
    with pytest.raises(ValueError, match="reduction"):
        diagonal(network(), mine, (inputs(ROWS, INPUTS), REAL), microbatch_size=4)


def test_the_l2_term_adds_its_coefficient():
    data, model = (inputs(ROWS, INPUTS), Y), network()
    bare = diagonal(model, nn.CrossEntropyLoss(), data)
    decayed = diagonal(
        model, nn.CrossEntropyLoss(), data, weight_decay=(0.3, lambda name, parameter: parameter.dim() > 1)
    )
    expected = torch.cat([torch.full_like(p, 0.3 if p.dim() > 1 else 0.0).reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(decayed - bare, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["squared error", "sequences"])
def test_with_targets_of_the_model_it_is_the_diagonal_of_the_ggn(kind, reduction):
    """Then the Fisher matrix is the Gauss-Newton matrix, also where an example has several terms.

    With 20,000 examples the sum of squares has a standard error of about sqrt(2/20000) = 1%, and five times that is
    allowed for the worst of some tens of entries.
    """
    rows, positions = 20_000, 3
    torch.manual_seed(3)
    if kind == "squared error":
        model, x = nn.Linear(2, 5).double(), torch.randn(rows, 2, dtype=torch.float64)
        y = model(x).detach() + 0.5**0.5 * torch.randn(rows, 5, dtype=torch.float64)  # the density exp(-(z - y)^2)
        loss = nn.MSELoss(reduction=reduction)
    else:
        model, x = nn.Conv1d(2, 3, 1).double(), torch.randn(rows, 2, positions, dtype=torch.float64)
        y = torch.distributions.Categorical(logits=model(x).detach().movedim(1, -1)).sample()
        loss = nn.CrossEntropyLoss(reduction=reduction)
    curved = linearize(Objective(model, loss, (x, y)))
    size = curved.space.size
    exact = torch.stack([curved.quadratic_form(unit) for unit in torch.eye(size, dtype=torch.float64)])
    found = EmpiricalFisher().estimate(curved, [size])["diagonal"]
    assert float((found / exact - 1).abs().max()) < 0.05


# ---------------------------------------------------------------------------------------------------------------------
# Models


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
    said = [str(w.message) for w in recwarn if "one by one" in str(w.message)]
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
    each = example_gradients.COPIES * 8 * space.size
    for free, expected in ((0, 1), (4 * each * 7, 7), (10**15, example_gradients.MOST_ROWS)):
        monkeypatch.setattr(example_gradients, "available", lambda device, free=free: free)
        assert example_gradients.rows_at_once(objective, space) == expected
    limited = Objective(model, nn.CrossEntropyLoss(), (inputs(ROWS, INPUTS), Y), memory_limit=3 * each)
    assert example_gradients.rows_at_once(limited, space) == 3


def test_weights_of_elements_scale_the_estimate_as_they_scale_the_curvature():
    """A mean over seven pixels with weight seven is their sum: the same function, hence the same estimate."""
    torch.manual_seed(0)
    model = nn.Linear(5, 7).double()
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.rand(30, 7, dtype=torch.float64)

    def summed(outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / len(outputs)

    summed.reduction = "mean"
    weighed = nn.BCEWithLogitsLoss(weight=torch.tensor(7.0))
    found = [
        EmpiricalFisher().estimate(linearize(Objective(model, loss, (x, y))), [42])["diagonal"]
        for loss in (weighed, summed)
    ]
    torch.testing.assert_close(found[0], found[1])
