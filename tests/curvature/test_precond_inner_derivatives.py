"""Diagonals where parameters are used by more than a layer's call: loops over single examples in float64."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from dense_oracle import relative
from hypothesis import given, settings
from hypothesis import strategies as st
from precond_cases import TIGHT
from random_tensors import generator
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.utils import parametrizations

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.preconditioners import EmpiricalFisher, GGNDiagonal, example_gradients

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # forward mode's own, once

Residual = Callable[[nn.Module, Tensor], Tensor]
ROWS = 7
POINTS = torch.rand(ROWS, 2, generator=generator(1), dtype=torch.float64)
TARGETS = torch.randn(ROWS, 1, generator=generator(2), dtype=torch.float64)


@pytest.fixture(autouse=True)
def nothing_refused(monkeypatch):
    """Each test starts as a fresh process does."""
    monkeypatch.setattr(example_gradients, "_warned", False)


def slopes(u: Tensor, x: Tensor) -> Tensor:
    return grad(u.sum(), x, create_graph=True)[0]


def u_x(model: nn.Module, points: Tensor) -> Tensor:
    """Without u itself: of the last layer's call nothing is left in the graph."""
    x = points.detach().requires_grad_()
    return slopes(model(x), x)[:, :1]


def u_xx(model: nn.Module, points: Tensor) -> Tensor:
    x = points.detach().requires_grad_()
    return slopes(slopes(model(x), x)[:, :1], x)[:, :1]


def reaction(model: nn.Module, points: Tensor) -> Tensor:
    x = points.detach().requires_grad_()
    u = model(x)
    return slopes(u, x)[:, 1:] - 2 * u * (1 - u)


def wave(model: nn.Module, points: Tensor) -> Tensor:
    """Two residuals a point."""
    x = points.detach().requires_grad_()
    u = model(x)
    along_x, along_t = slopes(u, x).split(1, dim=1)
    return torch.cat([slopes(along_t, x)[:, 1:] - 4 * slopes(along_x, x)[:, :1], u * along_x], dim=1)


def u_xxx(model: nn.Module, points: Tensor) -> Tensor:
    x = points.detach().requires_grad_()
    return slopes(slopes(slopes(model(x), x)[:, :1], x)[:, :1], x)[:, 1:]


def of_the_second_layer(model: nn.Sequential, points: Tensor) -> Tensor:
    """A derivative in hidden units: the first layer's weight is used by its call alone."""
    h = model[0](points)
    return slopes(model[1:](h), h).square().sum(1, keepdim=True)


def dual_numbers(model: nn.Module, points: Tensor) -> Tensor:
    with forward_mode.dual_level():
        along = torch.tensor([1.0, 0.5], dtype=torch.float64).expand_as(points)
        return forward_mode.unpack_dual(model(forward_mode.make_dual(points, along))).tangent


def transforms(model: nn.Module, points: Tensor) -> Tensor:
    one = torch.func.grad(lambda x: model(x.unsqueeze(0)).squeeze())
    return torch.func.vmap(one)(points)


DERIVATIVES: dict[str, Residual] = {
    "u_x": u_x, "u_xx": u_xx, "reaction": reaction, "wave": wave, "u_xxx": u_xxx,
    "of_the_second_layer": of_the_second_layer, "dual_numbers": dual_numbers, "transforms": transforms,
}  # fmt: skip


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).tanh()).tanh())


class Penalised(nn.Module):
    """A layer's weight used outside of its call, by the graph and by a function."""

    def __init__(self, by_function: bool):
        super().__init__()
        self.first, self.last, self.by_function = nn.Linear(2, 3), nn.Linear(3, 1), by_function

    def forward(self, x: Tensor) -> Tensor:
        beside = F.linear(x, self.first.weight).sum(1, keepdim=True) if self.by_function else 0.0
        return self.last(self.first(x).tanh()) + self.first.weight.sum() * x[:, :1] + beside


class Positive(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return F.softplus(weight)


class Own(nn.Module):
    """A parameter that belongs to no layer, between layers of which one has no bias."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 3, bias=False), nn.Linear(3, 1)
        self.frequency = nn.Parameter(torch.full((3,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sin(self.frequency * self.first(x)))


class Kept(nn.Module):
    """A hook, registered before any other, hands on the output of a layer; the model adds it."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.seen = nn.Linear(2, 3), nn.Linear(3, 1), []
        self.first.register_forward_hook(lambda module, arguments, output: self.seen.append(output))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh()) + self.seen.pop().sum(1, keepdim=True)


class Turned(nn.Module):
    """A hook of a tensor turns the slopes on their way to a layer's weight."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)
        self.first.register_forward_hook(self.turn)

    def turn(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        output.register_hook(lambda slopes: -0.5 * slopes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1))


def convolved() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 4), nn.Flatten(), nn.Tanh(),
                         nn.Linear(2, 1)).double()  # fmt: skip


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().double()


def with_parametrizations() -> nn.Module:
    model = network()
    parametrizations.weight_norm(model[0])
    nn.utils.parametrize.register_parametrization(model[2], "weight", Positive())
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": network,
    "tied": lambda: made(Tied),
    "penalised": lambda: made(lambda: Penalised(False)),
    "by_function": lambda: made(lambda: Penalised(True)),
    "parametrizations": with_parametrizations,
    "own": lambda: made(Own),
    "kept": lambda: made(Kept),
    "turned": lambda: made(Turned),
    "normed": lambda: made(normed),
}


def value(model: nn.Module, points: Tensor) -> Tensor:
    return model(points)


def jacobian(model: nn.Module, residual: Residual, points: Tensor) -> Tensor:
    """Of the residuals of each point by itself [points, k, P], by ordinary backward passes."""
    rows = []
    for x in points.split(1):
        own = residual(model, x).reshape(-1)
        each = [grad(r, list(model.parameters()), retain_graph=True, materialize_grads=True) for r in own]
        rows.append(torch.stack([torch.cat([g.reshape(-1) for g in gradients]) for gradients in each]))
    return torch.stack(rows).detach()


def fisher_of(model: nn.Module, residual: Residual, points: Tensor, targets: Tensor | float = 0.0) -> Tensor:
    """Of squared errors the squared gradients of single points, summed [P]."""
    errors = torch.cat([residual(model, x) for x in points.split(1)]).detach() - targets
    return (2 * torch.einsum("nk,nkp->np", errors, jacobian(model, residual, points))).square().sum(0)


def found(objective: Objective, method: EmpiricalFisher | GGNDiagonal, **options: Any) -> Tensor:
    curved = linearize(objective, **options)
    return method.estimate(curved, [curved.space.size])["diagonal"]


def check(residual: Residual, build: Callable[[], nn.Module]) -> None:
    """Fisher of residuals and of a forward of one's own; the GGN's diagonal, which is exact point by point."""
    model = build()
    objective = Objective.from_residuals(model, {"inside": (residual, POINTS)}, weights={"inside": 3.0})
    expected = 3 / ROWS * fisher_of(model, residual, POINTS)
    assert relative(found(objective, EmpiricalFisher()), expected) < TIGHT
    parts = Objective.from_residuals(model, {"inside": (residual, POINTS)}, microbatch_size=3)
    assert relative(found(parts, EmpiricalFisher()), expected / 3) < TIGHT  # the last part is one point

    width = residual(model, POINTS[:1]).shape[1]
    targets = TARGETS.expand(ROWS, width).contiguous()
    plain = Objective(model, nn.MSELoss(), (POINTS, targets), forward=residual)
    expected = fisher_of(model, residual, POINTS, targets) / (ROWS * width)
    assert relative(found(plain, EmpiricalFisher()), expected) < TIGHT

    if width == 1:  # a random sign alone has the square of one
        alone = Objective.from_residuals(model, {"inside": (residual, POINTS)}, microbatch_size=1)
        exact = 2 / ROWS * jacobian(model, residual, POINTS).square().sum((0, 1))
        assert relative(found(alone, GGNDiagonal(probes=1)), exact) < TIGHT


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives_inside_a_pass(derivative, recwarn):
    check(DERIVATIVES[derivative], network)
    assert not [w for w in recwarn if "example by example" in str(w.message)]


@pytest.mark.parametrize("derivative", ["value", "reaction"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "plain"])
def test_parameters_that_are_used_beside_their_layers(name, derivative, recwarn):
    """What is no layer's is followed, too."""
    check(DERIVATIVES.get(derivative, value), MODELS[name])
    assert not [w for w in recwarn if "example by example" in str(w.message)]


def rolled(model: nn.Module, points: Tensor) -> Tensor:
    """By an operation of which it is not known where the examples are."""
    return (torch.roll(reaction(model, points).expand(-1, 2), 1, dims=1) * points).sum(1, keepdim=True)


def called_twice(model: nn.Module, points: Tensor) -> Tensor:
    return u_x(model, points) - u_x(model, points + 1)


@pytest.mark.parametrize(("residual", "build"), [(rolled, network), (called_twice, network), (reaction, convolved)])
def test_a_pass_that_is_not_followed_goes_example_by_example(residual, build):
    with pytest.warns(UserWarning, match="example by example"):
        check(residual, build)


def test_a_loss_that_holds_a_parameter_is_not_followed():
    """Its penalty belongs to each example's loss, and the outputs know nothing of it."""
    model = network()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean() + model[0].weight.square().sum()

    objective = Objective(model, loss, (POINTS, TARGETS), forward=reaction)
    expected = torch.zeros(objective.space().size, dtype=torch.float64)
    for x, y in zip(POINTS.split(1), TARGETS.split(1), strict=True):
        gradients = grad(loss(reaction(model, x), y), list(model.parameters()))
        expected += torch.cat([g.reshape(-1) for g in gradients]).square() / ROWS
    with pytest.warns(UserWarning, match="example by example"):
        assert relative(found(objective, EmpiricalFisher()), expected) < TIGHT


def test_terms_with_and_without_derivatives():
    model = network()
    terms = {"inside": (wave, POINTS), "edge": (value, POINTS[:3])}
    objective = Objective.from_residuals(model, terms, weights={"edge": 10.0}, weight_decay=0.1)
    expected = fisher_of(model, wave, POINTS) / ROWS + 10 / 3 * fisher_of(model, value, POINTS[:3]) + 0.1
    assert relative(found(objective, EmpiricalFisher()), expected) < TIGHT


def test_without_examples_the_diagonal_is_hutchinson_s():
    """Entry i of one estimate has the variance of the sum over j of C_ij^2; five standard errors for some tens."""
    model, probes = network(), 200

    def forward() -> tuple[Tensor, Tensor]:
        r = reaction(model, POINTS)
        return r.square().sum(), r

    rows = jacobian(model, reaction, POINTS)[:, 0]
    matrix = 2 * rows.T @ rows
    error = 5 * (matrix.square().sum(1) / probes).sqrt()
    torch.manual_seed(0)
    diagonal = found(Objective.from_forward(model, forward), GGNDiagonal(probes=probes))
    assert bool(((diagonal - matrix.diagonal()).abs() <= error).all())


def test_some_of_the_parameters():
    model = network()
    objective = Objective.from_residuals(model, {"inside": (u_xx, POINTS)})
    whole = fisher_of(model, u_xx, POINTS) / ROWS
    expected = torch.cat([whole[12:24], torch.zeros(1, dtype=torch.float64)])  # u_xx knows nothing of the last bias
    own = [model[2].weight, model[4].bias]
    assert relative(found(objective, EmpiricalFisher(), parameters=own), expected) < TIGHT


def test_one_pass_that_takes_derivatives_and_draws_masks(unchanged):
    """Gradients are zero or minus four, as each example's own mask lets pass."""
    model = nn.Sequential(nn.Linear(1, 30), nn.Dropout(0.5), nn.Linear(30, 1, bias=False)).double()
    nn.init.ones_(model[2].weight)
    nn.init.zeros_(model[0].weight)
    points = torch.zeros(64, 1, dtype=torch.float64)

    def slope(model: nn.Module, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return slopes(model(x), x) - 1  # u_x of weights of zero is zero, whatever the mask

    objective = Objective.from_residuals(model, {"inside": (slope, points)})
    with unchanged(model, generator=True):
        diagonal = found(objective, EmpiricalFisher())
    counts = diagonal[:30] * 64 / 16  # gradients are -2 * 2 where the mask lets through
    torch.testing.assert_close(counts, counts.round())
    assert 16 < float(counts.min()) < float(counts.max()) < 48


@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    factors=st.lists(st.sampled_from([0.0, 1.0, -2.5]), min_size=4, max_size=4).filter(any),
    rows=st.integers(1, 5),
    bias=st.booleans(),
)
def test_any_residual_of_any_perceptron(widths, factors, rows, bias):
    torch.manual_seed(len(widths))
    sizes = [2, *widths, 1]
    layers = [x for n, m in itertools.pairwise(sizes) for x in (nn.Linear(n, m, bias=bias), nn.Softplus())]
    model = nn.Sequential(*layers[:-1]).double()

    def residual(model: nn.Module, points: Tensor) -> Tensor:
        x = points.detach().requires_grad_()
        u = model(x)
        first = slopes(u, x)
        second = slopes(first[:, :1], x)
        terms = (u.square(), first[:, :1], second[:, 1:], first.square().sum(1, keepdim=True))
        return sum((factor * term for factor, term in zip(factors, terms, strict=True)), start=torch.zeros_like(u))

    points = POINTS[:rows]
    objective = Objective.from_residuals(model, {"inside": (residual, points)})
    expected = fisher_of(model, residual, points) / rows
    assert relative(found(objective, EmpiricalFisher()), expected) < TIGHT


def test_float32_is_as_close_as_its_rounding():
    model = network()
    expected = fisher_of(model, wave, POINTS) / ROWS
    objective = Objective.from_residuals(model.float(), {"inside": (wave, POINTS.float())})
    diagonal = found(objective, EmpiricalFisher())
    assert diagonal.dtype == torch.float32
    assert relative(diagonal.double(), expected) < 1e-5  # sums of some tens of products, squared
