"""Rows by one backward pass: each is the derivative of its output, for whatever layers the pass consists of."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from product_cases import randn, seeded
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.rows import chunk_rows, followed
from latephase.curvature.rows.following import follow
from latephase.curvature.rows.places import CannotFollow

ROWS = 5


def jacobian(model: nn.Module, forward: Callable[..., Tensor], x: Any, names: Sequence[str]) -> Tensor:
    """Derivatives of every number of the outputs, one backward pass each."""
    with torch.enable_grad():
        output = forward(model, x)
    named = dict(model.named_parameters())
    parameters = [named[name] for name in names]
    found = []
    for number in output.reshape(-1):
        slopes = torch.autograd.grad(number, parameters, retain_graph=True, allow_unused=True)
        whole = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, slopes, strict=True)]
        found.append(torch.cat([g.reshape(-1) for g in whole]))
    return torch.stack(found)


def refused(*args: Any) -> Any:
    raise AssertionError("the backward pass was not followed")


@pytest.fixture(autouse=True)
def no_other_way(monkeypatch):
    """Only rows that were followed count."""
    for name in ("pull_examples", "pull_whole"):
        monkeypatch.setattr(chunk_rows, name, refused)


def check(
    model: nn.Module, x: Any, forward: Callable[..., Tensor] | None = None, parameters: Any = None, **options: Any
) -> None:
    """Of half a sum of squares, rows are the outputs' derivatives."""
    model = model.double()
    call = (lambda m, inputs: m(inputs)) if forward is None else forward
    with torch.enable_grad():
        targets = torch.zeros_like(call(model, x).detach())
    own = {} if forward is None else {"forward": forward}
    objective = Objective(model, nn.MSELoss(reduction="sum"), (x, targets), **own, **options)
    curved = linearize(objective, method="double_backward", parameters=parameters)
    rows = curved.rows()
    expected = math.sqrt(2) * jacobian(model, call, x, curved.space.names)
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
    for most in (1, 3, 7):
        pieces = torch.cat(list(curved.row_pieces(most)))
        torch.testing.assert_close(pieces, rows, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


class Sequences(nn.Module):
    """Layers on [rows, 4, 6], and one output each of two."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers, self.last = nn.Sequential(*layers), nn.LazyLinear(2)

    def forward(self, x):
        x = self.layers(x)
        x = x[0] if isinstance(x, tuple) else x
        return self.last(x.flatten(1).tanh())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0]


class TimeFirst(nn.Module):
    """The examples are in the middle, and then merged with the times."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        times, rows, _ = (y := x.transpose(0, 1)).shape
        return self.linear(y.reshape(times * rows, 6)).sin().view(times, rows, 3).permute(1, 2, 0)


class Twice(nn.Module):
    """One weight in two ways, by itself and transposed, and a scale of its own."""

    def __init__(self):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(4, 1))

    def forward(self, x):
        y = F.linear(x, self.weight).tanh() @ self.weight
        return self.scale * F.linear(y, 2 * self.weight) + torch.einsum("ntd,od->nto", x, self.weight)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6, padding_idx=2)

    def forward(self, x):
        return self.embedding((x[..., 0] * 3).long().abs() % 7)


class Images(nn.Module):
    """[rows, 4, 6] as images of one channel."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x.unsqueeze(1))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 3),
    "width as rows": lambda: nn.Sequential(nn.Linear(6, ROWS), nn.Tanh(), nn.Linear(ROWS, ROWS)),
    "twice": Twice,
    "time first": TimeFirst,
    "attention": Attention,
    "encoder": lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
    "lstm": lambda: nn.LSTM(6, 3, batch_first=True),
    "gru": lambda: nn.GRU(6, 3, batch_first=True, bidirectional=True),
    "layer norm": lambda: nn.LayerNorm(6),
    "layer norm of two": lambda: nn.LayerNorm((4, 6)),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "batch norm": lambda: nn.BatchNorm1d(4).eval(),
    "weight norm": lambda: weight_norm(nn.Linear(6, 3)),
    "embedding": Words,
    "prelu": lambda: nn.PReLU(4),
    "glu": lambda: nn.Sequential(nn.Linear(6, 4), nn.GLU()),
    "bilinear": lambda: Bilinear(),
    "softmax": lambda: nn.Sequential(nn.Linear(6, 4), nn.Softmax(1), nn.Linear(4, 3), nn.LogSoftmax(2)),
    "activations": lambda: nn.Sequential(
        *(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 6), nn.Softplus(), nn.Linear(6, 6)),
        *(nn.ELU(), nn.Linear(6, 6), nn.LeakyReLU(), nn.Linear(6, 6), nn.Hardtanh(), nn.LogSigmoid(), nn.Mish()),
        *(nn.Linear(6, 6), nn.Softshrink(), nn.Linear(6, 6), nn.Hardsigmoid(), nn.Linear(6, 6), nn.Hardswish()),
    ),
    "conv1d": lambda: nn.Conv1d(4, 3, 2, padding=1, dilation=2),
    "conv2d": lambda: Images(nn.Conv2d(1, 3, (2, 3), stride=(1, 2), padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2)),
    "pools": lambda: Images(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.AvgPool2d((1, 2)), nn.Conv2d(2, 1, 1)),
}


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6, 6))

    def forward(self, x):
        return torch.einsum("nti,oij,ntj->nto", x, self.weight, x)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    torch.manual_seed(0)
    model = Sequences(LAYERS[name]())
    x = randn(ROWS, 4, 6, seed=3)
    model.double()(x)  # makes the last layer
    check(model, x)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    rows=st.integers(2, 5),
    times=st.integers(1, 4),
    first=st.booleans(),
    shared=st.booleans(),
    columns=st.integers(1, 3),
)
def test_any_sizes(sizes, rows, times, first, shared, columns):
    """Dimensions of the same size as that of the examples are not taken for it."""
    torch.manual_seed(1)
    widths = [4, *sizes]
    layers = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
    model = nn.ModuleDict({"layers": layers, "last": nn.Linear(times * sizes[-1], columns)})

    def forward(model: Any, x: Tensor) -> Tensor:
        y = x.transpose(0, 1) if first else x
        for _ in range(2 if shared and len(sizes) == 1 and sizes[0] == 4 else 1):
            for layer in model["layers"]:
                y = layer(y).tanh()
        return model["last"]((y.transpose(0, 1) if first else y).reshape(rows, -1))

    check(model, randn(rows, times, 4, seed=2), forward)


def network(inputs: int = 2, outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs))


def by_autograd(model: nn.Module, points: Tensor) -> Tensor:
    """u_xx + u_yy and u_x u."""
    x = points.detach().requires_grad_()
    u = model(x)
    (slopes,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    curved = [torch.autograd.grad(slopes[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
    return torch.stack([curved[0] + curved[1], slopes[:, 0] * u[:, 0]], dim=1)


def by_columns(model: nn.Module, points: Tensor) -> Tensor:
    """u_xx + u_yy and u_y, columns taken by lists of numbers, one of them twice."""
    x = points.detach().requires_grad_()
    (slopes,) = torch.autograd.grad(model(x[:, [0, 1]]).sum(), x, create_graph=True)
    slopes = slopes[..., [1, 0, 1]]
    curved = [torch.autograd.grad(slopes[:, i].sum(), x, create_graph=True)[0][:, [1 - i]] for i in range(2)]
    return torch.cat([curved[0] + curved[1], slopes[:, [2]]], dim=1)


def by_hessian(model: nn.Module, points: Tensor) -> Tensor:
    def one(x: Tensor) -> Tensor:
        return model(x.unsqueeze(0))[0, 0]

    return torch.func.vmap(lambda x: torch.func.hessian(one)(x).diagonal().sum())(points).unsqueeze(1)


def by_jvp(model: nn.Module, points: Tensor) -> Tensor:
    def one(x: Tensor) -> Tensor:
        slope = torch.func.grad(lambda y: model(y.unsqueeze(0))[0, 0])
        units = torch.eye(2, dtype=x.dtype)
        return torch.stack([torch.func.jvp(slope, (x,), (unit,))[1] @ unit for unit in units])

    return torch.func.vmap(one)(points)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("forward", [by_autograd, by_columns, by_hessian, by_jvp])
@pytest.mark.parametrize("size", [None, 4])
def test_derivatives_of_the_network(forward, size):
    check(seeded(network), randn(9, 2, seed=4), forward, microbatch_size=size)


def test_frozen_unused_and_some_parameters():
    model = seeded(network)
    model[0].bias.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    x = randn(ROWS, 2, seed=5)
    check(model, x, by_autograd)
    check(model, x, parameters=[model[4].bias, model[2].weight, model.unused])


def test_what_each_example_adds_may_depend_on_the_others_inputs():
    """The last layer's rows are those of the whole chunk, though an example alone has other outputs."""
    check(nn.Linear(3, 2), randn(ROWS, 3, seed=6), lambda model, x: model(x - x.mean(0)))


@pytest.mark.parametrize("forward", [
    lambda model, x: model(x) / len(x) ** 0.5,
    lambda model, x: model(x.view(ROWS, 3)),
    lambda model, x: model(x) if len(x) == ROWS else torch.fft.fft(model(x)).real,
    lambda model, x: model(x) if len(x) == ROWS else model(x) + 0 * model(x).sort(0).values,
])  # fmt: skip
def test_a_part_of_a_chunk_may_go_another_way(forward, monkeypatch):
    monkeypatch.setattr(followed, "AT_ONCE", 1)
    check(nn.Linear(3, 2), randn(ROWS, 3, seed=6), forward)


@pytest.mark.parametrize("size", [None, 3])
def test_pieces_have_passes_of_their_own_where_little_is_kept(size, monkeypatch):
    monkeypatch.setattr(followed, "AT_ONCE", 1)
    check(seeded(network), randn(9, 2, seed=4), by_autograd, microbatch_size=size)
    check(seeded(network), randn(9, 2, seed=4), by_autograd, microbatch_size=size, memory_limit=0)


def test_passes_narrower_than_the_parameters():
    def forward(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 3)), randn(40, 20, seed=2).float()
    curved = linearize(Objective(model, nn.MSELoss(), (x, torch.zeros(40, 3)), forward=forward))
    v = randn(curved.space.size, seed=3).float()
    rows = curved.rows()
    torch.testing.assert_close(rows.T @ (rows @ v), curved.matvec(v), rtol=0.02, atol=0.02 * float(v.norm()) / 20)
    torch.testing.assert_close(curved.row_kernel(), rows @ rows.T, rtol=0.02, atol=1e-3)


MIXING = {
    "mean": lambda y: y - y.mean(0),
    "softmax": lambda y: y.softmax(0),
    "cumsum": lambda y: y.cumsum(0),
    "product": lambda y: y @ (y.T @ y),
    "flip": lambda y: y.flip(0),
    "roll": lambda y: torch.cat([y[1:], y[:1]]),
    "norm": lambda y: y / y.norm(),
    "batch norm": lambda y: F.batch_norm(y, None, None, training=True),
    "sort": lambda y: y.sort(0).values,
    "reshape": lambda y: y.T.reshape(y.shape),
    "max": lambda y: y - y.max(0).values,
    "rows by numbers": lambda y: y[[1, 0, 2, 4, 3]],
    "entries by numbers": lambda y: y[[[1], [0], [2], [4], [3]], [[0, 1, 2]]],
}


@pytest.mark.parametrize("name", MIXING)
def test_examples_that_mix_are_not_followed(name):
    weight = randn(3, 4, seed=7).requires_grad_()
    output = MIXING[name](randn(ROWS, 4, seed=8) @ weight.T)
    with pytest.raises(CannotFollow):
        follow([output], [weight], [randn(ROWS, 3, seed=9)])


class Hidden(torch.autograd.Function):
    """A backward pass that goes where no operation is seen."""

    @staticmethod
    def forward(ctx, x, way):
        ctx.way = way
        return x.clone()

    @staticmethod
    def backward(ctx, *slopes):
        (slope,) = slopes
        if ctx.way == "numpy":
            return torch.from_numpy(slope.numpy() * 1.0), None
        if ctx.way == "item":
            return torch.full_like(slope, float(slope.sum())), None
        return (slope.data - slope.data.mean(0) if ctx.way == "data" else slope.mul_(2)), None


@pytest.mark.parametrize("way", ["numpy", "item", "data"])
def test_a_backward_pass_that_hides_its_numbers_is_not_followed(way):
    weight = randn(3, 4, seed=7).requires_grad_()
    output: Any = Hidden.apply(randn(ROWS, 4, seed=8) @ weight.T, way)
    with pytest.raises(CannotFollow):
        follow([output + randn(ROWS, 4, seed=8) @ weight.T], [weight], [randn(ROWS, 3, seed=9)])


def test_a_tensor_that_is_written_after_its_use_is_not_followed():
    weight, other = randn(3, 4, seed=7).requires_grad_(), randn(3, 4, seed=10).requires_grad_()
    x = randn(ROWS, 4, seed=8)
    doubled: Any = Hidden.apply(x @ weight.T, "in place")
    slopes = randn(ROWS, 3, seed=9)
    try:
        found = follow([doubled + x @ other.T], [weight, other], [slopes.clone()])
    except CannotFollow:
        return
    for terms, factor in zip(found, (2, 1), strict=True):
        expected = factor * slopes.unsqueeze(2) * x.unsqueeze(1)
        assert terms is not None
        torch.testing.assert_close(terms.of(slice(0, ROWS), (3, 4)), expected, rtol=1e-13, atol=0)
