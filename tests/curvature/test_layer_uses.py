"""Layers whose weight is used in other ways than by one plain call: factors of the right size, or a diagonal."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from dense_oracle import relative
from torch import Tensor, nn
from torch.nn.utils import prune

from latephase import KFAC, Objective
from latephase.curvature import linearize
from latephase.curvature.preconditioners import Kronecker
from latephase.curvature.preconditioners.example_gradients import squared_gradients


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """A linear layer, used by a function, and one that is used plainly."""

    def __init__(self, use: Callable[[nn.Linear, Tensor], Tensor], layer: nn.Linear | None = None):
        super().__init__()
        self.layer = nn.Linear(3, 3) if layer is None else layer
        self.use, self.last = use, nn.Linear(3, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) + self.use(self.layer, x)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 5 * super().forward(input)


def plainly(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(x)


def net_with_hook(hook: Callable, pre: bool = False) -> Net:
    net = Net(plainly)
    (net.layer.register_forward_pre_hook if pre else net.layer.register_forward_hook)(hook)
    return net


def replaced() -> Net:
    net = Net(plainly)
    layer = net.layer
    net.layer.forward = lambda x: 5 * F.linear(x, layer.weight, layer.bias)
    return net


def kept_aside() -> Net:
    """The weight by another way than through the layer."""
    net = Net(plainly)
    weight = net.layer.weight
    net.use = lambda layer, x: layer(x) + 5 * x @ weight
    return net


def frozen_weight() -> Net:
    net = Net(lambda layer, x: 5 * layer(x))
    net.layer.weight.requires_grad_(False)
    return net


def without_gradient(layer: nn.Linear, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


PLAIN = {
    "plain": lambda: Net(plainly),
    "scaled_afterwards": lambda: Net(lambda layer, x: 5 * layer(x)),
    "pre_hook": lambda: net_with_hook(lambda module, arguments: (5 * arguments[0],), pre=True),
    "in_place_afterwards": lambda: Net(lambda layer, x: layer(x).mul_(5)),
    "observed": lambda: net_with_hook(lambda module, arguments, output: None),
    "detached_use": lambda: Net(lambda layer, x: layer(x) + 5 * F.linear(x, layer.weight.detach())),
    "shape_read": lambda: Net(lambda layer, x: layer(x) * layer.weight.shape[0]),
    "frozen_weight": frozen_weight,
}
OTHERS = {
    "hook": lambda: net_with_hook(lambda module, arguments, output: 5 * output),
    "hook_in_place": lambda: net_with_hook(lambda module, arguments, output: output.mul_(5)),
    "subclass": lambda: Net(plainly, Scaled(3, 3)),
    "replaced_forward": replaced,
    "second_use": lambda: Net(lambda layer, x: layer(x) + 5 * F.linear(x, layer.weight)),
    "second_use_by_keyword": lambda: Net(lambda layer, x: layer(x) + 5 * F.linear(x, weight=layer.weight)),
    "product": lambda: Net(lambda layer, x: layer(x) + 5 * x @ layer.weight),
    "transposed": lambda: Net(lambda layer, x: layer(x) + 5 * F.linear(x, layer.weight.T)),
    "in_part": lambda: Net(lambda layer, x: layer(x) + F.pad(5 * F.linear(x, layer.weight[:2]), (0, 1))),
    "among_others": lambda: Net(lambda layer, x: layer(x) + 5 * x @ torch.stack([layer.weight, layer.weight]).sum(0)),
    "bias_alone": lambda: Net(lambda layer, x: layer(x) + 5 * layer.bias),
    "kept_aside": kept_aside,
    "function_only": lambda: Net(lambda layer, x: F.linear(x, layer.weight, layer.bias)),
    "no_grad": lambda: Net(without_gradient),
    "by_vmap": lambda: Net(lambda layer, x: torch.func.vmap(layer)(x)),
}
DATA = 2.0 + normal(12, 3), normal(12, 3, seed=2)


@contextlib.contextmanager
def said(nothing: bool) -> Iterator[None]:
    if nothing:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    else:
        with pytest.warns(UserWarning, match=r"diagonal instead of Kronecker factors: '(layer|0)': "):
            yield


def size_of(moments: dict[str, Tensor], size: int) -> Tensor:
    """The trace of M over each of the parameters, blocks and diagonal."""
    found = moments["diagonal"].clone()
    for index, (weight, bias, columns, rows) in enumerate(moments["layers"].tolist()):
        b, a = moments[f"{index}.slopes"].diagonal(), moments.get(f"{index}.inputs")
        if weight >= 0:
            found[weight : weight + rows * columns] += torch.outer(b, a.diagonal()[:columns]).flatten()
        if bias >= 0:
            found[bias : bias + rows] += b * (1.0 if a is None or len(a) == columns else a.diagonal()[-1])
    return found


def check_size(model: nn.Module, data: tuple[Tensor, Tensor], exact: bool = True) -> None:
    """Each parameter's part of M's diagonal against that of the matrix."""
    objective = Objective(model, nn.MSELoss(), data)
    curved = linearize(objective, method="double_backward")
    torch.manual_seed(0)
    found = size_of(Kronecker(probes=400).moments(curved, [curved.space.size]), curved.space.size)
    unit = torch.eye(curved.space.size, dtype=torch.float64)
    expected = torch.stack([curved.quadratic_form(v) for v in unit])
    for name, mine, right in zip(
        curved.space.names, found.split(curved.space.sizes), expected.split(curved.space.sizes), strict=True
    ):
        assert float(mine.sum()) == pytest.approx(float(right.sum()), rel=0.15 if exact else 0.3), name


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_factors_have_the_size_of_the_matrix(name):
    model = (PLAIN | OTHERS)[name]()
    with said(name in PLAIN or name == "function_only"):  # which is not called, and thus no layer of the pass
        check_size(model, DATA)
    objective = Objective(model, nn.MSELoss(), DATA)
    curved = linearize(objective)
    layers = Kronecker().moments(curved, [curved.space.size])["layers"]  # the second time nothing is said
    assert len(layers) == (2 if name in PLAIN else 1)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_convolutions_have_the_size_of_the_matrix(groups):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=groups), nn.Flatten()).double()
    with said(groups == 1):
        check_size(model, (1.0 + normal(12, 4, 2, 2), normal(12, 16, seed=2)), exact=False)


def test_a_hook_of_all_modules_is_seen():
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _, output: 5 * output if isinstance(module, nn.Linear) else None
    )
    try:
        with said(False):
            check_size(Net(plainly), DATA)
    finally:
        handle.remove()


def test_a_pruned_layer_gets_a_diagonal():
    model = Net(plainly)
    prune.random_unstructured(model.layer, "weight", 0.3)
    check_size(model, DATA)
    model.layer.weight_orig.requires_grad_(False)
    check_size(model, DATA)


def test_the_optimizer_reports_them_and_trains():
    model = OTHERS["second_use"]()
    objective, optimizer = Objective(model, nn.MSELoss(), DATA), KFAC(model.parameters())
    before = float(objective.value())
    with said(False):
        optimizer.step(objective)
    assert optimizer.report.diagonal_layers == ("layer",)
    assert float(objective.value()) < before


def derivative(model: nn.Module, points: Tensor) -> Tensor:
    x = points.detach().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0].square()


def constant_derivative(model: nn.Module, points: Tensor) -> Tensor:
    """Which no gradient flows through, while its backward pass goes through the layers' outputs."""
    x = points.detach().requires_grad_()
    outputs = model(x)
    return outputs * torch.autograd.grad(outputs.sum(), x, retain_graph=True)[0]


@pytest.mark.parametrize("residual", [derivative, constant_derivative])
def test_factors_are_said_to_be_rough_where_a_pass_takes_derivatives(residual):
    """Their B sums the slopes of all backward passes, those inside included, which are no curvature's."""
    model = Net(plainly)
    curved = linearize(Objective.from_residuals(model, {"inside": (residual, DATA[0])}))
    with pytest.warns(UserWarning, match=r"factors of the layers 'layer', 'last' are rough: derivatives"):
        moments = Kronecker().moments(curved, [curved.space.size])
    assert len(moments["layers"]) == 2
    with said(nothing=True):  # but once
        Kronecker().moments(curved, [curved.space.size])


def test_a_layer_whose_output_goes_nowhere_gets_a_diagonal():
    """Its slopes were looked for in vain: of the tangent of dual numbers in the last layer's output, say."""

    def tangent(model: nn.Module, points: Tensor) -> Tensor:
        with forward_mode.dual_level():
            dual = forward_mode.make_dual(points, torch.ones_like(points))
            return forward_mode.unpack_dual(model(dual)).tangent

    def in_vain(model: nn.Sequential, points: Tensor) -> Tensor:
        model[2](points)
        return model[0](points).tanh()

    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    for residual in (tangent, in_vain):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is said of the first layer is said above
            curved = linearize(Objective.from_residuals(model, {"inside": (residual, DATA[0])}))
            moments = Kronecker().moments(curved, [curved.space.size])
        assert moments["layers"][:, 0].tolist() == [0]


def test_layers_that_a_term_does_not_call_get_a_diagonal():
    model = nn.ModuleDict({"one": nn.Linear(3, 2), "other": nn.Linear(3, 2), "both": nn.Linear(3, 2)}).double()
    terms = {
        "first": (lambda m, x: m["one"](x) + m["both"](x), DATA[0]),
        "second": (lambda m, x: m["other"](x) * m["both"](x), DATA[0]),
    }
    curved = linearize(Objective.from_residuals(model, terms))
    said_of_them = "'one': in term 'second' it is called 0 times; 'other': in term 'first' it is called 0 times"
    with pytest.warns(UserWarning, match=said_of_them):
        moments = Kronecker().moments(curved, [curved.space.size])
    assert len(moments["layers"]) == 1


@pytest.mark.parametrize("name", [name for name in (PLAIN | OTHERS) if name not in ("by_vmap", "kept_aside")])
def test_gradients_of_single_examples_are_right(name):
    """The empirical Fisher's diagonal, whose linear layers take one pass over all examples where that is right."""
    model = (PLAIN | OTHERS)[name]()
    objective = Objective(model, nn.MSELoss(reduction="sum"), DATA)
    expected = torch.zeros(objective.space().size, dtype=torch.float64)
    for x, y in zip(*DATA, strict=True):
        loss = (model(x[None]) - y[None]).square().sum()
        gradients = torch.autograd.grad(loss, objective.space().parameters, materialize_grads=True)
        expected += torch.cat([g.reshape(-1) for g in gradients]).square()
    ones = torch.ones(len(DATA[0]), dtype=torch.float64)
    found = squared_gradients(objective, objective.space(), objective.chunks[0], ones, ones, 0, None)
    assert relative(found, expected) < 1e-9


def test_a_penalty_in_the_loss_belongs_to_an_example_s_gradient():
    model = PLAIN["plain"]()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum() + model.layer.weight.pow(4).sum()

    objective = Objective(model, loss, (DATA[0][:1], DATA[1][:1]))
    expected = linearize(objective, products=False).gradient.square()
    one = torch.ones(1, dtype=torch.float64)
    found = squared_gradients(objective, objective.space(), objective.chunks[0], one, one, 0, None)
    assert relative(found, expected) < 1e-9
