"""Loss, gradient and curvature products of `linearize` against dense matrices, in float64.

A product is compared relative to the largest entry expected. 1e-10 is some 1e5 roundings: the sums here are short, so
an agreement worse than that is an error of the formula, never of the arithmetic.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from dense_oracle import Dense, columns, dense_oracle, relative
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import dense, linearize

TIGHT = 1e-10
REFUSAL = re.compile("forward mode|differentiated|in place|random|double_backward")
METHODS = ["auto", "linearize", "double_backward"]
# The Hessian has one method: torch.func.linearize of a gradient ends the process for some losses (torch 2.13).
PRODUCTS = [("ggn", method) for method in METHODS] + [("hessian", method) for method in ("auto", "double_backward")]
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
    """Loss, gradient, and products with random vectors; the quadratic form of each."""
    linearization = linearize(objective, curvature=curvature, method=method, **options)
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


def test_oracle_of_logistic_regression_in_closed_form():
    # GGN = Hessian = mean over rows of (diag(p) - p p') kron (x, 1)(x, 1)', the parameters in the order weight, bias.
    model, eye = seeded(lambda: nn.Linear(4, 3)), torch.eye(3, dtype=torch.float64)
    expected = 0.3 * torch.eye(15, dtype=torch.float64)
    for row, probabilities in zip(VECTORS, torch.softmax(model(VECTORS), dim=1).detach(), strict=True):
        jacobian = torch.cat([torch.kron(eye, row[None]), eye], dim=1)
        inner = torch.diag(probabilities) - torch.outer(probabilities, probabilities)
        expected += jacobian.T @ inner @ jacobian / ROWS
    actual = dense_oracle(model, nn.CrossEntropyLoss(), VECTORS, CLASSES, decay=lambda name, parameter: 0.3)
    assert relative(actual.ggn, expected) < 1e-14
    assert relative(actual.hessian, expected) < 1e-14


@pytest.mark.parametrize(("curvature", "method"), PRODUCTS)
@pytest.mark.parametrize("name", CASES)
def test_one_batch(name, curvature, method):
    case = CASES[name]
    objective = Objective(case.model(), case.loss, (case.inputs, case.targets), **case.options())
    if curvature == "ggn":
        check_against(objective, oracle(name), curvature, method)
    else:
        check_or_refusal(objective, oracle(name), curvature, method)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", CHUNKED)
def test_four_unequal_chunks_are_the_same_function(name, curvature):
    case = CASES[name]
    objective = Objective(case.model(), case.loss, case.chunks(), **case.options())
    check_against(objective, oracle(name), curvature)
    assert float(objective.value()) == pytest.approx(float(oracle(name).loss), rel=TIGHT)


@pytest.mark.parametrize("name", ["cross_entropy_smoothing_weights", "tied"])
def test_traced_chunks(name):
    case = CASES[name]
    check_against(Objective(case.model(), case.loss, case.chunks()), oracle(name), "ggn", "linearize")


@pytest.mark.parametrize("size", [1, 4, 11, 100])
@pytest.mark.parametrize("name", ["cross_entropy_weights", "squared_error_sum", "convolution", "dict_inputs"])
def test_microbatches_are_the_same_function(name, size):
    case = CASES[name]
    data = (case.inputs, case.targets)
    objective = Objective(case.model(), case.loss, data, microbatch_size=size, **case.options())
    check_against(objective, oracle(name), "ggn")
    assert float(objective.value()) == pytest.approx(float(oracle(name).loss), rel=TIGHT)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_whole_matrices(curvature):
    # Every entry, and the helper that builds it; the other tests multiply random vectors.
    for name in ("cross_entropy", "convolution", "tied"):
        case, expected = CASES[name], oracle(name).matrix(curvature)
        linearization = linearize(Objective(case.model(), case.loss, (case.inputs, case.targets)), curvature=curvature)
        assert relative(columns(linearization.matvec, len(expected)), expected) < TIGHT
        assert relative(dense(linearization.matvec, len(expected), torch.float64), expected) < TIGHT


def test_a_chunk_without_a_counted_target_has_weight_zero():
    # Its own mean is 0/0; the whole batch's is not.
    model, loss = seeded(mlp), nn.CrossEntropyLoss()
    targets = CLASSES.clone()
    targets[:4] = -100
    objective = Objective(model, loss, [(VECTORS[:4], targets[:4]), (VECTORS[4:], targets[4:])])
    expected = dense_oracle(model, loss, VECTORS, targets)
    check_against(objective, expected, "ggn")
    assert float(objective.value()) == pytest.approx(float(expected.loss), rel=TIGHT)


def test_chunks_need_a_loss_that_names_its_reduction():
    case = CASES["lambda"]
    assert float(Objective(case.model(), case.loss, (case.inputs, case.targets)).value()) > 0
    with pytest.raises((TypeError, ValueError), match="reduction"):
        Objective(case.model(), case.loss, case.chunks()).value()


# ---------------------------------------------------------------------------------------------------------------------
# Gradient, value and closure


@pytest.mark.parametrize("name", ["cross_entropy_smoothing_weights", "convolution", "tied", "squared_error_sum"])
@pytest.mark.parametrize("chunked", [False, True], ids=["one", "chunks"])
def test_gradient_value_and_closure_against_autograd(name, chunked):
    case = CASES[name]
    model = case.model()
    loss = case.loss(model(case.inputs), case.targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    objective = Objective(model, case.loss, case.chunks() if chunked else (case.inputs, case.targets))
    assert float(objective.value()) == pytest.approx(float(loss.detach()), rel=TIGHT)
    assert all(parameter.grad is None for parameter in model.parameters())
    flat = torch.cat([g.reshape(-1) for g in gradients])
    linearization = linearize(objective)
    assert relative(linearization.gradient.detach(), flat) < TIGHT
    assert not linearization.gradient.requires_grad
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)  # the closure overwrites, it does not add
    assert float(objective()) == pytest.approx(float(loss.detach()), rel=TIGHT)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert relative(parameter.grad, gradient) < TIGHT


def test_torch_optimizers_take_the_objective_as_their_closure():
    case = CASES["cross_entropy"]
    ours, theirs = case.model(), case.model()
    objective = Objective(ours, case.loss, case.chunks())
    torch.optim.SGD(ours.parameters(), lr=0.1).step(objective)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    case.loss(theirs(case.inputs), case.targets).backward()
    optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert relative(one.detach(), other.detach()) < TIGHT


# ---------------------------------------------------------------------------------------------------------------------
# Weight decay

DECAYS: dict[str, tuple[Any, Callable[[str, Tensor], float]]] = {
    "float": (0.3, lambda name, parameter: 0.3),
    "weights_only": (
        (0.3, lambda name, parameter: parameter.ndim > 1),
        lambda name, parameter: 0.3 if parameter.ndim > 1 else 0.0,
    ),
    "by_name": (
        (0.3, lambda name, parameter: name.startswith("2.")),
        lambda name, parameter: 0.3 if name.startswith("2.") else 0.0,
    ),
}


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("chunked", [False, True], ids=["one", "chunks"])
def test_weight_decay_in_loss_gradient_and_curvature(curvature, decay, chunked):
    case = CASES["cross_entropy_sum"]  # a sum: the decay must not be counted once per chunk
    model = case.model()
    given, per_parameter = DECAYS[decay]
    expected = dense_oracle(model, case.loss, case.inputs, case.targets, decay=per_parameter)
    assert relative(expected.gradient, oracle("cross_entropy_sum").gradient) > 1e-3
    data = case.chunks() if chunked else (case.inputs, case.targets)
    objective = Objective(model, case.loss, data, weight_decay=given)
    check_against(objective, expected, curvature)
    assert float(objective.value()) == pytest.approx(float(expected.loss), rel=TIGHT)
    assert float(objective()) == pytest.approx(float(expected.loss), rel=TIGHT)
    closure_gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    assert relative(closure_gradient, expected.gradient) < TIGHT


def test_weight_decay_counts_a_shared_weight_once():
    case = CASES["tied"]
    model = case.model()
    expected = dense_oracle(model, case.loss, case.inputs, case.targets, decay=lambda name, parameter: 0.3)
    check_against(Objective(model, case.loss, (case.inputs, case.targets), weight_decay=0.3), expected, "ggn")


# ---------------------------------------------------------------------------------------------------------------------
# Parameters


@pytest.mark.parametrize(("curvature", "method"), PRODUCTS)
@pytest.mark.parametrize("which", ["head", "first", "permuted"])
def test_subset_of_the_parameters(curvature, method, which):
    case = CASES["cross_entropy"]
    model = case.model()
    weight, bias, head_weight, head_bias = model.parameters()
    parameters = {
        "head": [head_weight, head_bias],
        "first": [weight, bias],
        "permuted": [head_bias, weight, head_weight],
    }[which]
    expected = dense_oracle(model, case.loss, case.inputs, case.targets, parameters=parameters)
    objective = Objective(model, case.loss, (case.inputs, case.targets))
    check_against(objective, expected, curvature, method, parameters=parameters)


def test_subset_is_a_block_of_the_whole():
    whole = oracle("cross_entropy").ggn
    case = CASES["cross_entropy"]
    model = case.model()
    head = linearize(
        Objective(model, case.loss, (case.inputs, case.targets), weight_decay=0.2),
        parameters=list(model[2].parameters()),
    )
    assert relative(columns(head.matvec, 18), whole[25:, 25:] + 0.2 * torch.eye(18, dtype=torch.float64)) < TIGHT


def test_a_foreign_parameter_is_an_error():
    case = CASES["cross_entropy"]
    model = case.model()
    objective = Objective(model, case.loss, (case.inputs, case.targets))
    with pytest.raises(ValueError, match=r"."):
        linearize(objective, parameters=[*model.parameters(), nn.Parameter(torch.ones(2, dtype=torch.float64))])


def test_the_hessian_by_linearize_is_an_error():
    case = CASES["cross_entropy"]
    with pytest.raises(ValueError, match="double_backward"):
        linearize(Objective(case.model(), case.loss, (case.inputs, case.targets)), "hessian", method="linearize")


@pytest.mark.parametrize("options", [{"curvature": "nonsense"}, {"method": "nonsense"}], ids=["curvature", "method"])
def test_unknown_options_are_errors(options):
    case = CASES["cross_entropy"]
    with pytest.raises(ValueError, match="nonsense"):
        linearize(Objective(case.model(), case.loss, (case.inputs, case.targets)), **options)


def test_a_frozen_parameter_keeps_no_gradient():
    case = CASES["frozen_layer"]
    model = case.model()
    Objective(model, case.loss, (case.inputs, case.targets))()
    assert [parameter.grad is None for parameter in model.parameters()] == [True, True, False, False]


# ---------------------------------------------------------------------------------------------------------------------
# Any function at all


@pytest.mark.parametrize(("curvature", "method"), PRODUCTS)
@pytest.mark.parametrize("name", ["cross_entropy_smoothing_weights", "lambda_coupling_rows", "tied"])
def test_from_forward(name, curvature, method):
    case = CASES[name]
    model = case.model()

    def forward() -> tuple[Tensor, Tensor]:
        outputs = model(case.inputs)
        return case.loss(outputs, case.targets), outputs

    objective = Objective.from_forward(model, forward)
    assert float(objective.value()) == pytest.approx(float(oracle(name).loss), rel=TIGHT)
    check_or_refusal(objective, oracle(name), curvature, method)


# ---------------------------------------------------------------------------------------------------------------------
# Layers


class Layer(nn.Module):
    """Linear, the function or module under test on [N, 4], and a linear layer on what comes out."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 4):
        super().__init__()
        self.first, self.function, self.last = nn.Linear(4, 4), function, nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.function(self.first(inputs)).flatten(1))


class Reshaped(nn.Module):
    """A module applied to [N, *shape]."""

    def __init__(self, shape: tuple[int, ...], module: nn.Module):
        super().__init__()
        self.shape, self.module = shape, module

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.module(inputs.view(-1, *self.shape))
        return outputs[0] if isinstance(outputs, tuple) else outputs


def residual_in_place(inputs: Tensor) -> Tensor:
    outputs = torch.sin(inputs)
    outputs += inputs  # as residual networks are written
    return torch.relu_(outputs)


class Attention(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.view(-1, 1, 2, 2)
        return nn.functional.scaled_dot_product_attention(x, 2.0 * x, x * x, is_causal=True)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "relu_in_place": lambda: Layer(nn.ReLU(inplace=True)),
    "leaky_relu": lambda: Layer(nn.LeakyReLU(0.1)),
    "elu": lambda: Layer(nn.ELU()),
    "selu": lambda: Layer(nn.SELU()),
    "gelu": lambda: Layer(nn.GELU()),
    "gelu_tanh": lambda: Layer(nn.GELU(approximate="tanh")),
    "silu": lambda: Layer(nn.SiLU()),
    "mish": lambda: Layer(nn.Mish()),
    "sigmoid": lambda: Layer(nn.Sigmoid()),
    "log_sigmoid": lambda: Layer(nn.LogSigmoid()),
    "softplus": lambda: Layer(nn.Softplus()),
    "hardswish": lambda: Layer(nn.Hardswish()),
    "hardtanh": lambda: Layer(nn.Hardtanh()),
    "prelu": lambda: Layer(nn.PReLU()),
    "softmax": lambda: Layer(nn.Softmax(dim=1)),
    "log_softmax": lambda: Layer(nn.LogSoftmax(dim=1)),
    "layer_norm": lambda: Layer(nn.LayerNorm(4)),
    "group_norm": lambda: Layer(nn.GroupNorm(2, 4)),
    "average_pooling": lambda: Layer(Reshaped((1, 2, 2), nn.AvgPool2d(2, padding=1)), width=4),
    "adaptive_pooling": lambda: Layer(Reshaped((1, 2, 2), nn.AdaptiveAvgPool2d(1)), width=1),
    "max_pooling_1d": lambda: Layer(Reshaped((1, 4), nn.MaxPool1d(2)), width=2),
    "upsampling": lambda: Layer(Reshaped((1, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear")), width=16),
    "transposed_convolution": lambda: Layer(Reshaped((2, 2), nn.ConvTranspose1d(2, 4, 1)), width=8),
    "lstm": lambda: Layer(Reshaped((2, 2), nn.LSTM(2, 3, batch_first=True)), width=6),
    "gru": lambda: Layer(Reshaped((2, 2), nn.GRU(2, 3, batch_first=True)), width=6),
    "attention": lambda: Layer(Attention()),
    "normalize": lambda: Layer(lambda x: nn.functional.normalize(x, dim=1)),
    "product_and_sum": lambda: Layer(lambda x: torch.cumsum(x, dim=1) * x.prod(dim=1, keepdim=True)),
    "standard_deviation": lambda: Layer(lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)),
    "assignment_in_place": lambda: Layer(lambda x: x.clone().mul_(x).add_(1.0).tanh_()),
    "residual_in_place": lambda: Layer(residual_in_place),
    "dropout_off": lambda: Layer(nn.Dropout(0.5)).eval(),
}


@pytest.mark.parametrize(
    ("layer", "curvature", "method"),
    [(layer, curvature, "auto") for layer in LAYERS for curvature in CURVATURES]
    + [(layer, "ggn", "linearize") for layer in LAYERS],
)
def test_layers(layer, curvature, method):
    # Each product is asked for more than once: a trace that writes into its own constants is right only the first time.
    model = seeded(LAYERS[layer])
    expected = dense_oracle(model, nn.CrossEntropyLoss(), VECTORS, CLASSES)
    objective = Objective(model, nn.CrossEntropyLoss(), (VECTORS, CLASSES))
    check_or_refusal(objective, expected, curvature, method)


# ---------------------------------------------------------------------------------------------------------------------
# The product as an operator

OPERATOR_CASES = ["cross_entropy_weights", "convolution", "batch_norm_eval"]


@pytest.mark.parametrize(("curvature", "method"), [p for p in PRODUCTS if "auto" not in p])
@pytest.mark.parametrize("name", OPERATOR_CASES)
def test_linear_symmetric_and_consistent(name, curvature, method):
    case = CASES[name]
    data = case.chunks() if method == "double_backward" else (case.inputs, case.targets)
    objective = Objective(case.model(), case.loss, data, weight_decay=0.01)
    linearization = linearize(objective, curvature=curvature, method=method)
    size = linearization.gradient.numel()
    u, v = randn(size, seed=1), randn(size, seed=2)
    u_copy, v_copy = u.clone(), v.clone()
    first, second = linearization.matvec(u), linearization.matvec(v)
    assert relative(linearization.matvec(2.5 * u - 0.75 * v), 2.5 * first - 0.75 * second) < TIGHT
    assert float(v @ first) == pytest.approx(float(u @ second), rel=TIGHT, abs=TIGHT * float(first.norm() * v.norm()))
    assert float(linearization.quadratic_form(v)) == pytest.approx(float(v @ second), rel=TIGHT)
    assert torch.equal(linearization.matvec(u), first)  # nothing is left over from the products in between
    assert torch.equal(u, u_copy)
    assert torch.equal(v, v_copy)
    assert not linearization.matvec(torch.zeros(size, dtype=torch.float64)).any()
    assert not first.requires_grad


@pytest.mark.parametrize(("curvature", "method"), PRODUCTS)
def test_under_no_grad(curvature, method):
    # Optimizers step under no_grad; the linearisation has to bring its own.
    case = CASES["cross_entropy"]
    objective, expected = Objective(case.model(), case.loss, (case.inputs, case.targets)), oracle("cross_entropy")
    with torch.no_grad():
        check_against(objective, expected, curvature, method)


def test_ggn_is_positive_semidefinite_and_the_hessian_is_not():
    case = CASES["cross_entropy"]
    objective = Objective(case.model(), case.loss, (case.inputs, case.targets))
    size = len(oracle("cross_entropy").ggn)
    ggn, hessian = (columns(linearize(objective, curvature=name).matvec, size) for name in CURVATURES)
    assert float(torch.linalg.eigvalsh(ggn).min()) > -1e-14
    assert float(torch.linalg.eigvalsh(hessian).min()) < -1e-6


@pytest.mark.parametrize("curvature", CURVATURES)
def test_float32(curvature):
    case = CASES["convolution"]
    model = case.model().float()
    objective = Objective(model, case.loss, (case.inputs.float(), case.targets))
    linearization = linearize(objective, curvature=curvature)
    expected = oracle("convolution")
    v = randn(len(expected.gradient), seed=1)
    product = linearization.matvec(v.float())
    assert product.dtype == linearization.gradient.dtype == torch.float32
    # Rounding of float32 is 6e-8; the sums have some hundred terms.
    assert relative(linearization.gradient.double(), expected.gradient) < 1e-5
    assert relative(product.double(), expected.matrix(curvature) @ v) < 1e-5


# ---------------------------------------------------------------------------------------------------------------------
# Validity


def change_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(1.0)


def change_by_step(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def change_by_loading(model: nn.Module) -> None:
    model.load_state_dict({name: value + 1.0 for name, value in model.state_dict().items()})


@pytest.mark.parametrize("method", ["linearize", "double_backward"])
@pytest.mark.parametrize("change", [change_in_place, change_by_step, change_by_loading])
def test_products_are_refused_once_the_parameters_changed(method, change):
    case = CASES["cross_entropy"]
    model = case.model()
    linearization = linearize(Objective(model, case.loss, (case.inputs, case.targets)), method=method)
    v = torch.ones_like(linearization.gradient)
    linearization.matvec(v)
    change(model)
    with pytest.raises(RuntimeError, match="parameter"):
        linearization.matvec(v)
    with pytest.raises(RuntimeError, match="parameter"):
        linearization.quadratic_form(v)


def test_two_linearizations_of_one_objective():
    # The second, at another point, must not disturb what is kept of the first: a trace is shared, its numbers are not.
    case = CASES["cross_entropy"]
    model, other = case.model(), seeded(mlp, seed=1)
    objective = Objective(model, case.loss, (case.inputs, case.targets))
    linearize(objective).matvec(randn(43, seed=1))
    model.load_state_dict(other.state_dict())
    check_against(objective, dense_oracle(other, case.loss, case.inputs, case.targets), "ggn")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["convolution", "tied", "shared_module", "batch_norm_eval"])
def test_linearize_leaves_the_model_alone(name, method):
    case = CASES[name]
    model = case.model()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective = Objective(model, case.loss, (case.inputs, case.targets))
    for curvature in CURVATURES if method != "linearize" else ["ggn"]:
        linearization = linearize(objective, curvature=curvature, method=method)
        linearization.matvec(torch.ones_like(linearization.gradient))
        objective.value()
        objective.value(at=dict(model.named_parameters()))
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameter for name, parameter in parameters.items())  # the very objects
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Training mode: dropout and batch normalisation


def dropout_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 3)).train()


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("method", ["auto", "double_backward"])
@pytest.mark.parametrize("chunked", [False, True], ids=["one", "chunks"])
def test_dropout_is_one_fixed_function(curvature, method, chunked):
    case = Case(dropout_mlp, nn.CrossEntropyLoss())
    objective = Objective(case.model(), case.loss, case.chunks() if chunked else (case.inputs, case.targets))
    linearization = linearize(objective, curvature=curvature, method=method)
    assert float(linearization.loss) == pytest.approx(float(objective.value()), rel=1e-13)
    size = linearization.gradient.numel()
    u, v = randn(size, seed=1), randn(size, seed=2)
    first, second = linearization.matvec(u), linearization.matvec(v)
    assert torch.equal(linearization.matvec(u), first)
    assert float(v @ first) == pytest.approx(float(u @ second), rel=TIGHT)
    assert float(linearization.quadratic_form(v)) == pytest.approx(float(v @ second), rel=TIGHT)
    assert relative(linearization.matvec(u + v), first + second) < TIGHT
    assert float(linearization.loss) == pytest.approx(float(objective.value()), rel=1e-13)


def test_dropout_is_on():
    # Otherwise the test above would show nothing: the loss is not that of evaluation mode.
    case = Case(dropout_mlp, nn.CrossEntropyLoss())
    train, evaluation = case.model(), case.model().eval()
    data = (case.inputs, case.targets)
    torch.manual_seed(0)
    difference = float(Objective(train, case.loss, data).value()) - float(
        Objective(evaluation, case.loss, data).value()
    )
    assert abs(difference) > 1e-3


def test_a_trace_that_would_draw_new_masks_is_refused():
    # torch.func.linearize keeps the drawing of the mask in its trace; asked for by name, that is an error, not a guess.
    case = Case(dropout_mlp, nn.CrossEntropyLoss())
    linearization = linearize(Objective(case.model(), case.loss, (case.inputs, case.targets)), method="linearize")
    with pytest.raises(RuntimeError, match="random"):
        linearization.matvec(torch.ones_like(linearization.gradient))


@pytest.mark.parametrize("method", ["auto", "double_backward"])
@pytest.mark.parametrize("chunked", [False, True], ids=["one", "chunks"])
def test_loss_gradient_and_products_share_the_dropout_mask(method, chunked):
    # Dropout, then a linear layer, then squared error: f is a quadratic of theta for any one mask, so that
    # f = g'theta - 0.5 theta'G theta + f(0) and f(0) = mean(y^2). It fails if two of f, g and G see different masks.
    case = Case(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).train(), nn.MSELoss(), targets=REALS)
    model = case.model()
    objective = Objective(model, case.loss, case.chunks() if chunked else (case.inputs, case.targets))
    linearization = linearize(objective, method=method)
    theta = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    loss = linearization.gradient @ theta - 0.5 * theta @ linearization.matvec(theta) + REALS.pow(2).mean()
    assert float(linearization.loss) == pytest.approx(float(loss), rel=TIGHT)
    assert float(objective.value()) == pytest.approx(float(loss), rel=TIGHT)


@pytest.mark.parametrize(("curvature", "method"), PRODUCTS)
def test_batch_norm_in_training_mode(curvature, method):
    case = Case(lambda: normalized().train(), nn.CrossEntropyLoss())
    model = case.model()
    expected = dense_oracle(model, case.loss, case.inputs, case.targets)
    evaluation = dense_oracle(case.model().eval(), case.loss, case.inputs, case.targets)
    assert relative(expected.loss, evaluation.loss) > 1e-3
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    objective = Objective(model, case.loss, (case.inputs, case.targets))
    check_against(objective, expected, curvature, method)
    assert float(objective.value()) == pytest.approx(float(expected.loss), rel=TIGHT)
    assert model.training
    assert len(before) == 3
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_methods_agree_on_a_wider_network():
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(54, 10),
        ).eval()
    )
    inputs = randn(16, 2, 6, 6, seed=1)
    targets = torch.arange(16) % 10
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, targets), weight_decay=1e-3)
    one, other = (linearize(objective, method=name) for name in METHODS[1:])
    v = randn(one.gradient.numel(), seed=2)
    assert relative(one.gradient, other.gradient) < TIGHT
    assert relative(one.matvec(v), other.matvec(v)) < TIGHT
