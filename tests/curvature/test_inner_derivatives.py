"""Losses that hold derivatives of the network: norms have wrong higher derivatives in torch, and are written out."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from product_cases import randn, seeded
from torch import Tensor, nn
from torch.autograd import grad  # bound early, as users do

from latephase import Objective
from latephase.curvature import linearize

TIGHT = 1e-9
POINTS = randn(6, 2, seed=1)
TARGETS = randn(6, 1, seed=2)


class Net(nn.Module):
    """A linear layer, the norm, and an output of every point."""

    def __init__(self, norm: nn.Module | Callable[[Tensor], Tensor], linear: Callable[..., nn.Module] = nn.Linear):
        super().__init__()
        self.first, self.norm, self.last = linear(2, 4), norm, nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(torch.sin(self.first(x)))))


class Own(nn.Module):
    """A norm with weight and bias, computed by a function."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def written_out(x: Tensor, weight: Tensor, bias: Tensor, dims: int | tuple[int, ...] = -1) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt() * weight + bias


def in_groups(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return written_out(x.view(-1, 2, 2), torch.ones(()), torch.zeros(())).flatten(1) * weight + bias


class Channels(nn.Module):
    """Instance norm of [N, 4] as two channels of two."""

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.view(-1, 2, 2)).flatten(1)


class Encoder(nn.Module):
    """A transformer's layer on two positions; its norms are layer norms."""

    def __init__(self, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 3, dropout=0.0, batch_first=True, activation=torch.tanh)
        self.layer.norm1, self.layer.norm2 = norm(2), norm(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(-1, 2, 2)).flatten(1)


class Written(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return written_out(x, self.weight, self.bias)


class WeightNormed(nn.Module):
    """What `weight_norm` computes, in elementary operations and with the same parameters."""

    def __init__(self, columns: int, rows: int):
        super().__init__()
        other = nn.utils.parametrizations.weight_norm(nn.Linear(columns, rows)).parametrizations.weight
        self.bias = nn.Parameter(torch.zeros(rows))
        self.g, self.v = nn.Parameter(other.original0.detach()), nn.Parameter(other.original1.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.g * self.v / self.v.square().sum(1, keepdim=True).sqrt(), self.bias)


def normed_linear(columns: int, rows: int) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(columns, rows))


def old_normed_linear(columns: int, rows: int) -> nn.Module:
    with pytest.warns(FutureWarning, match="deprecated"):
        return nn.utils.weight_norm(nn.Linear(columns, rows))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "layer_norm": (lambda: Net(nn.LayerNorm(4)), lambda: Net(Own(written_out))),
    "layer_norm_function": (
        lambda: Net(Own(lambda x, w, b: F.layer_norm(x, [4], w, b))),
        lambda: Net(Own(written_out)),
    ),
    "layer_norm_native": (
        lambda: Net(Own(lambda x, w, b: torch.native_layer_norm(x, [4], w, b, 1e-5)[0])),
        lambda: Net(Own(written_out)),
    ),
    "batch_norm": (
        lambda: Net(nn.BatchNorm1d(4)),
        lambda: Net(Own(lambda x, w, b: written_out(x, w, b, 0))),
    ),
    "batch_norm_function": (
        lambda: Net(Own(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True))),
        lambda: Net(Own(lambda x, w, b: written_out(x, w, b, 0))),
    ),
    "instance_norm": (lambda: Net(Channels()), lambda: Net(lambda x: in_groups(x, torch.ones(4), torch.zeros(4)))),
    "group_norm": (lambda: Net(nn.GroupNorm(2, 4)), lambda: Net(Own(in_groups))),
    "rms_norm": (
        lambda: Net(nn.RMSNorm(4, eps=1e-5)),
        lambda: Net(lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()),
    ),
    "encoder_layer": (lambda: Net(Encoder(nn.LayerNorm)), lambda: Net(Encoder(Written))),
    "weight_norm": (lambda: Net(nn.Tanh(), normed_linear), lambda: Net(nn.Tanh(), WeightNormed)),
    "weight_norm_old": (lambda: Net(nn.Tanh(), old_normed_linear), lambda: Net(nn.Tanh(), WeightNormed)),
}


def second_derivatives(model: nn.Module, points: Tensor) -> Tensor:
    x = points.detach().requires_grad_()
    u = model(x)
    (u_x,) = grad(u.sum(), x, create_graph=True)
    (u_xx,) = grad(u_x[:, 0].sum(), x, create_graph=True)
    return u + u_xx[:, :1]


def first_derivatives(model: nn.Module, points: Tensor) -> Tensor:
    x = points.detach().requires_grad_()
    u = model(x)
    (u_x,) = grad(u.sum(), x, create_graph=True)
    return u + u_x[:, :1] ** 2


def third_derivatives(model: nn.Module, points: Tensor) -> Tensor:
    x = points.detach().requires_grad_()
    u = model(x)
    u_x = grad(u.sum(), x, create_graph=True)[0][:, 0]
    u_xx = grad(u_x.sum(), x, create_graph=True)[0][:, 0]
    return u + grad(u_xx.sum(), x, create_graph=True)[0][:, :1]


def by_transforms(model: nn.Module, points: Tensor) -> Tensor:
    """u + u_xx by forward mode over reverse mode, of the batch as a whole."""
    along = torch.zeros_like(points)
    along[:, 0] = 1.0
    slopes = torch.func.grad(lambda x: model(x).sum())
    return model(points) + torch.func.jvp(slopes, (points,), (along,))[1][:, :1]


def by_forward_mode(model: nn.Module, points: Tensor) -> Tensor:
    along = torch.zeros_like(points)
    along[:, 0] = 1.0
    return sum(torch.func.jvp(model, (points,), (along,)))


FORWARDS = {
    "u_x": first_derivatives, "u_xx": second_derivatives, "u_xxx": third_derivatives, "transforms": by_transforms,
    "forward_mode": by_forward_mode,
}  # fmt: skip


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The model and the same written out, at equal parameters that are away from their initial values."""
    model, same = (seeded(build) for build in CASES[name])
    values = [p + 0.3 * randn(*p.shape, seed=10 + i) for i, p in enumerate(model.parameters())]
    if len(list(same.parameters())) < len(values):  # norms without weight and bias
        values = [value for value, (key, _) in zip(values, model.named_parameters(), strict=True) if "norm" not in key]
        values = [model.state_dict()[key] for key, _ in model.named_parameters() if "norm" in key] and values
    with torch.no_grad():
        names = [key for key, _ in model.named_parameters()]
        order = names if len(names) == len(values) else [key for key in names if "norm" not in key]
        for key, value in zip(order, values, strict=True):
            model.get_parameter(key).copy_(value)
        for (_, p), value in zip(same.named_parameters(), _in_order(same, order, values), strict=True):
            p.copy_(value)
    return model, same


def _in_order(same: nn.Module, names: list[str], values: list[Tensor]) -> list[Tensor]:
    own = [key for key, _ in same.named_parameters()]
    if "first.v" not in own:
        return values
    table = {key.replace("parametrizations.weight.original0", "g").replace("weight_g", "g")
             .replace("parametrizations.weight.original1", "v").replace("weight_v", "v"): value
             for key, value in zip(names, values, strict=True)}  # fmt: skip
    return [table[key] for key in own]


def products(objective: Objective, names: list[str], curvature: str, method: str) -> tuple[Tensor, Tensor]:
    """Gradient and two products, by parameter in the order of the names."""
    parameters = [objective.model.get_parameter(name) for name in names]
    curved = linearize(objective, curvature=curvature, parameters=parameters, method=method, at_once=True)
    assert method == "double_backward" or curved.method == "traced" or "derivatives" in curved.reason, curved.reason
    return curved.gradient, torch.stack([curved.matvec(randn(curved.space.size, seed=seed)) for seed in (3, 4)])


def translated(names: list[str], model: nn.Module) -> list[str]:
    table = {"first.v": ("first.parametrizations.weight.original1", "first.weight_v"),
             "first.g": ("first.parametrizations.weight.original0", "first.weight_g")}  # fmt: skip
    known = dict(model.named_parameters())
    return [next(key for key in (name, *table.get(name, ())) if key in known) for name in names]


def close(x: Tensor, y: Tensor) -> bool:
    return float((x - y).abs().max()) <= TIGHT * float(y.abs().max())


def check(name: str, derivative: str, methods: tuple[str, ...]) -> None:
    model, same = pair(name)
    ours = Objective(model, nn.MSELoss(), (POINTS, TARGETS), forward=FORWARDS[derivative])
    written = Objective(same, nn.MSELoss(), (POINTS, TARGETS), forward=FORWARDS[derivative])
    names = [key for key, _ in same.named_parameters()]
    own = translated(names, model)
    assert close(ours.value(), written.value())
    assert close(ours(), written())
    for key, other in zip(own, names, strict=True):
        assert close(model.get_parameter(key).grad, same.get_parameter(other).grad), key
    for curvature in ("ggn", "hessian"):
        gradient, expected = products(written, names, curvature, "double_backward")
        for method in methods:
            found, product = products(ours, own, curvature, method)
            assert close(found, gradient), (curvature, method)
            assert close(product, expected), (curvature, method)


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_inside_are_those_of_the_layer_written_out(name):
    check(name, "u_xx", ("double_backward",))


@pytest.mark.parametrize("name", ["layer_norm_function", "batch_norm", "weight_norm"])
def test_they_are_in_a_trace_too(name):
    check(name, "u_xx", ("auto",))


@pytest.mark.parametrize("derivative", ["u_x", "u_xxx", "transforms", "forward_mode"])
def test_other_orders_and_the_transforms_are_right_too(derivative):
    check("layer_norm", derivative, ("double_backward",))


@pytest.mark.slow
@pytest.mark.parametrize("derivative", FORWARDS)
@pytest.mark.parametrize("name", CASES)
def test_every_order_of_every_layer_is_right(name, derivative):
    if derivative in ("transforms", "forward_mode") and name in ("batch_norm", "encoder_layer"):
        pytest.skip("torch itself refuses: running statistics move in a transform, attention has no forward mode")
    check(name, derivative, ("double_backward", "auto"))


NATIVE = {"layer": nn.LayerNorm(4), "batch": nn.BatchNorm1d(4), "group": nn.GroupNorm(2, 4)}


@pytest.mark.parametrize("kind", NATIVE)
def test_without_derivatives_inside_torch_s_own_kernels_run(kind):
    objective = Objective(seeded(lambda: Net(NATIVE[kind])), nn.MSELoss(), (POINTS, TARGETS))
    for _ in range(2):
        curved = linearize(objective, method="double_backward")
        curved.matvec(torch.ones(curved.space.size, dtype=torch.float64))
    with torch.profiler.profile() as profile:
        objective.value()
    assert f"aten::native_{kind}_norm" in {event.key for event in profile.key_averages()}


def test_a_pass_begun_anew_moves_statistics_and_draws_numbers_once():
    """The first pass is broken off where it takes a derivative; what it had moved by then must not stay moved."""
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.4), nn.Linear(4, 1)))
    found = []
    for _ in range(2):
        model[1].reset_running_stats()
        torch.manual_seed(0)
        objective = Objective(model, nn.MSELoss(), (POINTS, TARGETS), forward=second_derivatives)
        loss = objective()
        found.append((loss, model[1].running_mean.clone(), model[1].num_batches_tracked.clone(), torch.get_rng_state()))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
    assert int(found[0][2]) == 1
    with torch.no_grad():
        expected = 0.1 * model[0](POINTS).mean(0)
    assert torch.allclose(found[0][1], expected)


def test_a_network_that_takes_derivatives_in_some_chunks_only():
    """As physics-informed losses have it: batches that differ by their keys."""
    model, same = pair("layer_norm")

    def forward(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return network(inputs["edge"]) if "edge" in inputs else second_derivatives(network, inputs["interior"])

    data = [({"edge": POINTS[:2]}, TARGETS[:2]), ({"interior": POINTS[2:]}, TARGETS[2:])]
    ours, written = (linearize(Objective(m, nn.MSELoss(), data, forward=forward)) for m in (model, same))
    assert close(ours.gradient, written.gradient)
    assert close(ours.loss, written.loss)


def test_a_mode_in_which_derivatives_are_taken_comes_later():
    """Nothing was kept to begin anew, and nothing needs to be."""

    class Switch(nn.Module):
        def __init__(self, net: nn.Module):
            super().__init__()
            self.net, self.inside = net, False

        def forward(self, x: Tensor) -> Tensor:
            return second_derivatives(self.net, x) if self.inside else self.net(x)

    ours, written = (Objective(Switch(net), nn.MSELoss(), (POINTS, TARGETS)) for net in pair("layer_norm"))
    for inside in (False, True):
        ours.model.inside = written.model.inside = inside
        assert close(linearize(ours).gradient, linearize(written).gradient)
