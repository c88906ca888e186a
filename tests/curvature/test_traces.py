"""What is kept between steps: every change that a trace could miss, against a fresh linearisation without one."""

import copy
import functools
import gc
import pickle
import random
import types
import warnings
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from dense_oracle import relative
from product_cases import CLASS_WEIGHTS, CLASSES, REALS, REFUSAL, TIGHT, VECTORS, normalized, randn, seeded
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import Linearization, linearize
from latephase.curvature.tracing import cache as traces

BOTH = pytest.mark.parametrize("curvature", ["ggn", "hessian"])
OTHER = randn(11, 4, seed=20)
"""Other inputs of the same shape."""


def compare(one: Linearization, other: Linearization, tolerance: float = TIGHT) -> None:
    """Loss, gradient, products and quadratic form are the same."""
    v = randn(one.space.size, seed=30).to(one.space.dtype)
    product = other.matvec(v)
    assert relative(one.loss, other.loss) < tolerance
    assert relative(one.gradient, other.gradient) < tolerance
    for _ in range(2):
        assert relative(one.matvec(v), product) < tolerance
    form, scale = float(v @ product), float(v.norm() * product.norm())
    assert float(one.quadratic_form(v)) == pytest.approx(form, abs=tolerance * scale)


def right(objective: Objective, curvature: str = "ggn", **options) -> Linearization:
    """The linearisation by "auto", which is compared with one that knows no trace."""
    linearization = linearize(objective, curvature, **options)
    compare(linearization, linearize(objective, curvature, method="double_backward", **options))
    return linearization


def settled(objective: Objective, curvature: str = "ggn", **options) -> Linearization:
    """The third linearisation of an objective: traced, used twice, not compared again before the fourth use."""
    assert right(objective, curvature, **options).method != "traced"
    for _ in range(2):
        linearization = right(objective, curvature, **options)
        assert linearization.method == "traced", linearization.reason
    return linearization


def squared(model: nn.Module, inputs=VECTORS, targets=REALS, **options) -> Objective:
    return Objective(model, nn.MSELoss(), (inputs, targets), **options)


def mlp() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


class Calling(nn.Module):
    """A network whose forward pass is the given function of the hidden layer's values and itself."""

    def __init__(self, function: Callable[["Calling", Tensor], Tensor], **attributes):
        super().__init__()
        self.first, self.function, self.last = nn.Linear(4, 4), function, nn.Linear(4, 3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(inputs)))


def calling(function: Callable[[Calling, Tensor], Tensor], **attributes) -> Calling:
    model = seeded(lambda: Calling(function, **attributes))
    assert isinstance(model, Calling)
    return model


# ---------------------------------------------------------------------------------------------------------------------
# A trace is made the second time, and used for other numbers


@BOTH
def test_traced_from_the_second_time_on(curvature):
    objective = squared(mlp())
    first = linearize(objective, curvature)
    first.matvec(torch.ones_like(first.gradient))
    assert first.method in ("linearize", "double_backward")
    assert first.reason == "seen for the first time"
    second = linearize(objective, curvature)
    assert (second.method, second.reason) == ("traced", None)
    by_name = linearize(squared(mlp()), curvature, method="traced")
    assert (by_name.method, by_name.reason) == ("traced", None)


@BOTH
def test_other_parameters_and_other_data(curvature):
    model = mlp()
    settled(squared(model), curvature)
    for seed in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(randn(*p.shape, seed=seed))
        assert right(squared(model, OTHER * (1 + seed), REALS.flip(0)), curvature).method == "traced"


def test_two_linearizations_by_one_trace_do_not_share_numbers():
    model = mlp()
    one = settled(squared(model))
    other = right(squared(model, OTHER))
    compare(one, linearize(squared(model), method="double_backward"))
    compare(other, linearize(squared(model, OTHER), method="double_backward"))


def test_another_batch_size_and_back():
    model = mlp()
    settled(squared(model))
    settled(squared(model, VECTORS[:7], REALS[:7]))
    assert right(squared(model, OTHER)).method == "traced"
    assert right(squared(model, OTHER[:7], REALS[4:])).method == "traced"


def test_no_more_traces_are_kept_than_the_bound():
    model = mlp()
    inputs, targets = VECTORS.repeat(3, 1), REALS.repeat(3, 1)
    for rows in range(1, traces.MAX_TRACES + 5):
        for _ in range(2):
            right(squared(model, inputs[:rows], targets[:rows]))
    assert len(traces._entries[model]) <= traces.MAX_TRACES
    for rows in (1, 2, traces.MAX_TRACES + 4):  # the first have been let go
        settled_or_kept = right(squared(model, inputs[:rows], targets[:rows]))
        assert settled_or_kept.method == ("traced" if rows > traces.MAX_TRACES else "double_backward")


# ---------------------------------------------------------------------------------------------------------------------
# The same tensor in two places, when the trace is made; two tensors later


def test_inputs_that_were_the_targets_too():
    # An autoencoder, and afterwards a denoising one.
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4)))
    settled(squared(model, VECTORS, VECTORS))
    right(squared(model, OTHER, VECTORS))


def test_two_inputs_that_were_one():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.tanh(self.a(a)) * self.b(b)

    model = seeded(Two)
    settled(squared(model, (VECTORS, VECTORS)))
    right(squared(model, (VECTORS, OTHER)))


def test_two_attributes_that_were_one_tensor():
    scale = torch.full((4,), 1.5, dtype=torch.float64)
    model = calling(lambda self, h: torch.tanh(h * self.a) * self.b, a=scale, b=scale)
    settled(squared(model))
    model.b = scale * 3.0
    right(squared(model))


def test_an_attribute_that_was_the_data():
    model = calling(lambda self, h: h * torch.tanh(self.memory), memory=VECTORS)
    settled(squared(model, VECTORS))
    right(squared(model, OTHER))
    model.memory = REALS.repeat(1, 2)[:, :4]
    right(squared(model, VECTORS))


def test_a_buffer_that_was_the_data():
    model = calling(lambda self, h: h * torch.tanh(self.memory))
    model.register_buffer("memory", VECTORS)
    settled(squared(model, VECTORS))
    right(squared(model, OTHER))


def test_a_captured_tensor_that_was_the_target():
    def pulled(batch: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda z, y: ((z - y) ** 2).mean() + 0.1 * (z * batch).pow(2).mean()

    model = mlp()
    settled(Objective(model, pulled(REALS), (VECTORS, REALS)))
    right(Objective(model, pulled(3.0 * REALS.flip(0)), (VECTORS, REALS)))


# ---------------------------------------------------------------------------------------------------------------------
# The model changes


class Slotted:
    __slots__ = ("temperature",)

    def __init__(self, temperature: float):
        self.temperature = temperature


class Extended(dict):
    """A mapping with attributes beside its items."""


def test_train_and_eval():
    model = seeded(normalized).train()
    settled(squared(model))
    model.eval()
    settled(squared(model))
    model.train()
    assert right(squared(model)).method == "traced"
    model[1].eval()  # of one submodule alone
    right(squared(model))


def set_attribute(name: str, value) -> Callable[[Calling], None]:
    return lambda model: setattr(model, name, value)


CHANGES: dict[str, tuple[Callable, dict, Callable[[Calling], None]]] = {
    "float": (lambda self, h: torch.tanh(h * self.t), {"t": 1.0}, set_attribute("t", 3.0)),
    "whole_number": (lambda self, h: torch.tanh(h) ** self.n, {"n": 1}, set_attribute("n", 2)),
    "bool": (lambda self, h: torch.tanh(h) if self.on else torch.sin(h), {"on": True}, set_attribute("on", False)),
    "string": (lambda self, h: getattr(torch, self.mode)(h), {"mode": "tanh"}, set_attribute("mode", "sin")),
    "list": (lambda self, h: h * sum(self.n), {"n": [1.0, 2.0]}, lambda model: model.n.append(4.0)),
    "dict": (lambda self, h: h * self.d["a"], {"d": {"a": 1.0}}, lambda model: model.d.update(a=2.0)),
    "set": (lambda self, h: h * sum(self.n), {"n": {1.0}}, lambda model: model.n.add(5.0)),
    "nested": (
        lambda self, h: h * self.c.inner["scale"],
        {"c": types.SimpleNamespace(inner={"scale": 1.0})},
        lambda model: model.c.inner.update(scale=2.0),
    ),
    "slots": (
        lambda self, h: torch.tanh(h * self.c.temperature),
        {"c": Slotted(1.0)},
        lambda model: setattr(model.c, "temperature", 3.0),
    ),
    "mapping_with_attributes": (
        lambda self, h: torch.tanh(h * getattr(self.c, "t", 1.0)),
        {"c": Extended()},
        lambda model: setattr(model.c, "t", 3.0),
    ),
    "numpy_array": (
        lambda self, h: torch.tanh(h * float(self.n[0])),
        {"n": np.array([1.0])},
        lambda model: model.n.fill(3.0),
    ),
    "numpy_number": (lambda self, h: h * float(self.n), {"n": np.float32(1.0)}, set_attribute("n", np.float32(2.0))),
    "function": (lambda self, h: self.f(h), {"f": torch.tanh}, set_attribute("f", torch.sin)),
    "lambda": (lambda self, h: self.f(h), {"f": lambda h: torch.tanh(h)}, set_attribute("f", lambda h: torch.sin(h))),
    "partial": (
        lambda self, h: self.f(h),
        {"f": functools.partial(torch.mul, other=1.0)},
        set_attribute("f", functools.partial(torch.mul, other=2.0)),
    ),
    "tensor_in_place": (
        lambda self, h: torch.tanh(h * self.t),
        {"t": torch.ones(4, dtype=torch.float64)},
        lambda model: model.t.mul_(3.0),
    ),
    "tensor_rebound": (
        lambda self, h: torch.tanh(h * self.t),
        {"t": torch.ones(4, dtype=torch.float64)},
        lambda model: setattr(model, "t", model.t * 3.0),
    ),
    "tensor_of_another_shape": (
        lambda self, h: torch.tanh(h * self.t),
        {"t": torch.ones(4, dtype=torch.float64)},
        set_attribute("t", torch.tensor(2.0, dtype=torch.float64)),
    ),
    "tensors_in_a_list": (
        lambda self, h: torch.tanh(h * self.t[0] + self.t[1]),
        {"t": [torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)]},
        lambda model: model.t.reverse(),
    ),
    "of_a_submodule": (
        lambda self, h: self.act(h),
        {"act": nn.LeakyReLU(0.1)},
        lambda model: setattr(model.act, "negative_slope", 0.5),
    ),
    "hook": (
        lambda self, h: torch.tanh(h),
        {},
        lambda model: model.first.register_forward_hook(lambda module, args, output: 2.0 * output),
    ),
    "forward_of_an_instance": (
        lambda self, h: torch.tanh(h),
        {},
        lambda model: setattr(model.first, "forward", lambda x: 2.0 * x),
    ),
    "submodule": (lambda self, h: self.act(h), {"act": nn.Tanh()}, lambda model: setattr(model, "act", nn.Sigmoid())),
    "order_of_submodules": (
        lambda self, h: self.acts(h),
        {"acts": nn.Sequential(nn.Tanh(), nn.ELU())},
        lambda model: setattr(model, "acts", nn.Sequential(nn.ELU(), nn.Tanh())),
    ),
    "forgotten_parameter": (
        lambda self, h: torch.tanh(h),
        {},
        lambda model: model.first.register_parameter("bias", None),
    ),
    "tying": (
        lambda self, h: torch.tanh(self.more(h)),
        {"more": nn.Linear(4, 4)},
        lambda model: setattr(model.more, "weight", model.first.weight),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model(change):
    function, attributes, apply = CHANGES[change]
    model = calling(function, **copy.deepcopy(attributes))
    before = settled(squared(model)).loss
    apply(model)
    after = right(squared(model))
    assert float((after.loss - before).abs()) > 1e-6
    for _ in range(2):
        right(squared(model))


def test_a_submodule_of_the_same_kind_with_other_weights():
    model = mlp()
    settled(squared(model))
    model[2] = seeded(lambda: nn.Linear(5, 3), seed=7)
    assert right(squared(model)).method == "traced"


@BOTH
def test_a_frozen_and_thawed_parameter(curvature):
    model = mlp()
    settled(squared(model), curvature)
    model[0].weight.requires_grad_(False)
    assert right(squared(model), curvature).space.size == 43 - 20
    model[0].weight.requires_grad_(True)
    assert right(squared(model), curvature).method == "traced"


@BOTH
def test_another_subset_of_the_parameters(curvature):
    model = mlp()
    weight, bias, head, _ = model.parameters()
    for parameters in ([weight, bias], [head], [bias, weight], None):
        settled(squared(model), curvature, parameters=parameters)


def test_another_dtype_of_the_model():
    model = mlp()
    settled(squared(model))
    model.float()
    single = Objective(model, nn.MSELoss(), (VECTORS.float(), REALS.float()))
    linearization = linearize(single)
    compare(linearization, linearize(single, method="double_backward"), 1e-5)
    for _ in range(2):
        traced = linearize(single)
        assert traced.method == "traced"
        assert traced.gradient.dtype == torch.float32
        compare(traced, linearize(single, method="double_backward"), 1e-5)
    model.double()
    assert right(squared(model)).method == "traced"


# ---------------------------------------------------------------------------------------------------------------------
# The loss changes


def test_class_weights():
    model, weight = mlp(), CLASS_WEIGHTS.clone()
    loss = nn.CrossEntropyLoss(weight=weight)
    settled(Objective(model, loss, (VECTORS, CLASSES)))
    weight.mul_(torch.tensor([3.0, 1.0, 0.5]))
    right(Objective(model, loss, (VECTORS, CLASSES)))
    loss.weight = CLASS_WEIGHTS.flip(0)
    right(Objective(model, loss, (VECTORS, CLASSES)))
    right(Objective(model, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS**2), (VECTORS, CLASSES)))
    right(Objective(model, nn.CrossEntropyLoss(), (VECTORS, CLASSES)))


@pytest.mark.parametrize("setting", [{"label_smoothing": 0.2}, {"ignore_index": 1}, {"reduction": "sum"}])
def test_settings_of_a_loss(setting):
    model, loss = mlp(), nn.CrossEntropyLoss()
    settled(Objective(model, loss, (VECTORS, CLASSES)))
    for name, value in setting.items():
        setattr(loss, name, value)
    right(Objective(model, loss, (VECTORS, CLASSES)))


def test_another_kind_of_loss():
    model = mlp()
    for loss in (nn.MSELoss(), nn.SmoothL1Loss(), nn.functional.mse_loss, nn.functional.smooth_l1_loss):
        settled(Objective(model, loss, (VECTORS, REALS)))


def power(exponent: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: (z - y).abs().pow(exponent).mean()


def test_closures_that_captured_another_number():
    model = mlp()
    settled(Objective(model, power(2.0), (VECTORS, REALS)))
    right(Objective(model, power(4.0), (VECTORS, REALS)))
    assert right(Objective(model, power(2.0), (VECTORS, REALS))).method == "traced"


def test_a_closure_whose_captured_number_changes():
    exponent = 2.0
    objective = Objective(mlp(), lambda z, y: (z - y).abs().pow(exponent).mean(), (VECTORS, REALS))
    settled(objective)
    exponent = 3.0
    right(objective)


def test_a_closure_made_anew_at_every_step():
    # It captures the batch that it is for, instead of taking its targets.
    model = mlp()
    for step in range(6):
        batch = randn(11, 3, seed=50 + step)
        linearization = right(Objective(model, lambda z, y, batch=batch: (z - batch).pow(2).mean(), (VECTORS, REALS)))
        assert (linearization.method == "traced") == (step > 0)
    for step in range(6):
        batch = randn(11, 3, seed=60 + step)
        right(Objective(model, lambda z, y: (z - batch).pow(4).mean(), (VECTORS, REALS)))  # noqa: B023


def test_partials():
    model = mlp()
    weighted = functools.partial(nn.functional.cross_entropy, weight=CLASS_WEIGHTS)
    settled(Objective(model, weighted, (VECTORS, CLASSES)))
    for keywords in ({"weight": CLASS_WEIGHTS.flip(0)}, {"label_smoothing": 0.3}, {"reduction": "sum"}):
        right(Objective(model, functools.partial(nn.functional.cross_entropy, **keywords), (VECTORS, CLASSES)))


def test_attributes_of_a_callable_and_of_a_method():
    class Weighted:
        def __init__(self, scale: float):
            self.scale = scale

        def __call__(self, z: Tensor, y: Tensor) -> Tensor:
            return self.scale * (z - y).pow(2).mean()

    for take in (lambda loss: loss, lambda loss: loss.__call__):
        model, loss = mlp(), Weighted(1.0)
        settled(Objective(model, take(loss), (VECTORS, REALS)))
        loss.scale = 2.0
        right(Objective(model, take(loss), (VECTORS, REALS)))


def test_a_loss_that_reaches_into_the_model():
    # An L2 term written by hand: through the module it follows the parameters, whatever their values.
    model = mlp()
    objective = Objective(model, lambda z, y: (z - y).pow(2).mean() + model[0].weight.pow(2).sum(), (VECTORS, REALS))
    settled(objective)
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    right(objective)


def test_a_loss_that_captured_a_parameter():
    model = mlp()
    weight = model[0].weight
    objective = Objective(model, lambda z, y: (z - y).pow(2).mean() * weight.pow(2).sum(), (VECTORS, REALS))
    for _ in range(3):
        right(objective)
    with torch.no_grad():
        weight.mul_(2.0)
    right(objective)


def test_another_forward_function():
    model = mlp()
    for factor in (1.0, 2.0, 1.0):
        objective = squared(model, forward=lambda model, inputs, factor=factor: factor * model(inputs))
        for _ in range(3):
            right(objective)


# ---------------------------------------------------------------------------------------------------------------------
# What no signature can see


class OfTheClass(nn.Module):
    scale = 1.0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.linear(inputs) * self.scale)


def test_an_attribute_of_the_class_is_found_out(monkeypatch):
    objective = squared(seeded(OfTheClass))
    settled(objective)  # two uses
    monkeypatch.setattr(OfTheClass, "scale", 3.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            linearization = linearize(objective)
    assert caught or linearization.method == "traced"
    compare(linearization, linearize(objective, method="double_backward"))


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be traced


UNTRACEABLE: dict[str, Callable[[Calling, Tensor], Tensor]] = {
    "branch": lambda self, h: torch.tanh(h) if h.sum() > 0 else torch.sin(h),
    "item": lambda self, h: h * h.detach().abs().max().item(),
    "float": lambda self, h: h * float(h.detach().mean()),
    "tolist": lambda self, h: h * h.detach().abs().amax(1).tolist()[0],
    "tolist_of_a_scalar": lambda self, h: h * h.detach().abs().amax().tolist(),
    "numpy": lambda self, h: h * float(h.detach().numpy().max()),
    "asarray": lambda self, h: h * float(np.asarray(h.detach()).max()),
    "from_numpy": lambda self, h: h * torch.from_numpy(np.abs(h.detach().numpy())),
    "boolean_mask": lambda self, h: h + h[h > 0].pow(2).sum(),
    "nonzero": lambda self, h: h + h[(h > 0).nonzero()[:, 0]].pow(2).sum(),
    "unique": lambda self, h: h * len(torch.unique(h.detach().round())),
    "python_random": lambda self, h: h * (1.0 + random.random()),
    "numpy_random": lambda self, h: h * (1.0 + np.random.rand()),  # noqa: NPY002
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_cannot_be_traced_is_not(name):
    model = calling(UNTRACEABLE[name])
    reproducible = "random" not in name
    for step in range(5):
        inputs = randn(11, 4, seed=80 + step)
        objective = squared(model, inputs)
        random.seed(step)
        np.random.seed(step)  # noqa: NPY002
        one = linearize(objective)
        assert one.method != "traced"
        random.seed(step)
        np.random.seed(step)  # noqa: NPY002
        other = linearize(objective, method="double_backward")
        # The pass that looks whether it can be traced draws too, so that only the others can be compared.
        if reproducible or step != 1:
            compare(one, other)
    assert one.reason
    assert "first time" not in one.reason
    with pytest.raises(RuntimeError, match="traced"):
        linearize(objective, method="traced")


def test_an_objective_from_forward_is_never_traced():
    model = mlp()
    inputs = VECTORS

    def forward() -> tuple[Tensor, Tensor]:
        outputs = model(inputs)
        return (outputs - REALS).pow(2).mean(), outputs

    objective = Objective.from_forward(model, forward)
    for batch in (VECTORS, VECTORS, OTHER, VECTORS):
        inputs = batch
        linearization = right(objective)
        assert linearization.method != "traced"
    assert "from_forward" in str(linearization.reason)


def test_what_no_grad_made_is_a_constant():
    # torch's forward mode goes through no_grad, reverse mode does not; the Jacobian is that of reverse mode.
    def gated(self: Calling, h: Tensor) -> Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(h)
        return h * gate

    model = calling(gated)
    for _ in range(4):
        right(squared(model))
    right(squared(calling(lambda self, h: h * torch.sigmoid(h).detach())))
    v = torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    expected = linearize(squared(model), method="double_backward").matvec(v)
    for method in ("linearize", "traced"):
        try:
            product = linearize(squared(model), method=method).matvec(v)
        except RuntimeError:
            continue
        assert relative(product, expected) < TIGHT


def test_no_grad_where_tracing_pays_at_once(monkeypatch):
    # There the second method must not be one with the same error.
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.head = nn.Conv1d(1, 2, 3, padding=1), nn.Linear(8, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            h = self.convolution(inputs[:, None])
            with torch.no_grad():
                gate = torch.sigmoid(h)
            return self.head((h * gate).flatten(1))

    monkeypatch.setattr("latephase.curvature.eager.tangents.TRACE_PAYS", 1)
    objective = squared(seeded(Gated))
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            linearization = linearize(objective)
        compare(linearization, linearize(objective, method="double_backward"))


# ---------------------------------------------------------------------------------------------------------------------
# Random numbers and buffers


def dropping(*layers: nn.Module) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), *layers, nn.Linear(6, 3)).train())


@BOTH
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.4), nn.RReLU()])
def test_random_layers(layer, curvature):
    torch.manual_seed(3)
    model = dropping(copy.deepcopy(layer), nn.Dropout(0.2))
    objective = squared(model)
    losses = []
    for step in range(4):
        state = torch.get_rng_state()
        linearization = right(objective, curvature)
        assert torch.equal(torch.get_rng_state(), state)
        assert (linearization.method == "traced") == (step > 0)
        assert relative(linearization.loss, objective.value()) < 1e-14
        u, v = (randn(linearization.space.size, seed=seed) for seed in (1, 2))
        first, second = linearization.matvec(u), linearization.matvec(v)
        assert torch.equal(linearization.matvec(u), first)
        assert float(v @ first) == pytest.approx(float(u @ second), rel=TIGHT)
        losses.append(float(linearization.loss))
        objective.reseed()
    assert len(set(losses)) == len(losses)  # another mask each time


def test_a_draw_that_nothing_is_made_of():
    # It moves the generator all the same: the masks that follow are others without it.
    def wasteful(self: Calling, h: Tensor) -> Tensor:
        torch.rand(3)
        return nn.functional.dropout(torch.tanh(h), 0.5)

    objective = squared(calling(wasteful))
    settled(objective)


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_dropout_in_recurrent_layers_and_attention(microbatch_size):
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = nn.LSTM(2, 2, 2, dropout=0.5, batch_first=True)
            self.attention = nn.MultiheadAttention(2, 1, dropout=0.3, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            h = self.recurrent(inputs.view(-1, 2, 2))[0]
            return self.head(self.attention(h, h, h, need_weights=False)[0].flatten(1))

    objective = squared(seeded(Dropped), microbatch_size=microbatch_size)
    for _ in range(3):
        objective.reseed()
        linearization = right(objective)
        assert relative(linearization.loss, objective.value()) < 1e-14
    assert linearization.method == "traced"


@BOTH
def test_buffers_of_batch_norm(curvature):
    model = seeded(normalized).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    once = copy.deepcopy(model)
    once(VECTORS)
    for step in range(3):
        linearization = right(squared(model), curvature)
        assert (linearization.method == "traced") == (step > 0)
        for name, buffer in once.named_buffers():
            assert relative(linearization.buffers[name].double(), buffer.double()) < 1e-14
            assert linearization.buffers[name].dtype == buffer.dtype
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_buffers_of_batch_norm_over_chunks():
    # One ordinary pass over each chunk, in order; products do not move them, recomputed ones neither.
    model = seeded(normalized).train()
    once = copy.deepcopy(model)
    for rows in VECTORS.split(4):
        once(rows)
    for limit in (None, 0):
        objective = squared(model, microbatch_size=4, memory_limit=limit)
        for _ in range(3):
            linearization = right(objective)
            for name, buffer in once.named_buffers():
                assert relative(linearization.buffers[name].double(), buffer.double()) < 1e-14


@pytest.mark.parametrize("method", ["auto", "traced", "double_backward"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_buffers_of_batch_norm_with_products_in_a_dtype(dtype, method):
    # The products have a pass of their own; it must not move what the main pass moves.
    model = seeded(normalized).train()
    once = copy.deepcopy(model)
    once(VECTORS)
    for _ in range(3):
        linearization = linearize(squared(model), dtype=dtype, method=method)
        linearization.matvec(torch.ones_like(linearization.gradient))
        for name, buffer in once.named_buffers():
            assert relative(linearization.buffers[name].double(), buffer.double()) < 1e-14


class Halving(nn.Module):
    """Works in place on what the caller gave it a copy of."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        h = inputs.clone()
        h[:, 1:3].mul_(0.5)
        h[h > 1.0] = 0.0
        return self.linear(h.relu_())


def test_data_is_not_modified():
    inputs = VECTORS.clone()
    objective = squared(seeded(Halving), inputs)
    settled(objective)
    assert torch.equal(inputs, VECTORS)
    # The mask is one of the data: it must follow them.
    right(squared(objective.model, 2.0 * OTHER))


def test_a_first_layer_in_place():
    model = seeded(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)))
    clean = seeded(lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)))
    for _ in range(3):
        compare(linearize(squared(model, VECTORS.clone())), linearize(squared(clean), method="double_backward"))


# ---------------------------------------------------------------------------------------------------------------------
# Autocast and lower precision


def test_making_a_trace_leaves_the_generator_alone():
    torch.manual_seed(0)
    expected = float(squared(dropping(nn.Dropout(0.5))).value())
    for method in ("double_backward", "traced"):
        objective = squared(dropping(nn.Dropout(0.5)))
        torch.manual_seed(0)
        state = torch.get_rng_state()
        linearization = linearize(objective, method=method)
        linearization.matvec(torch.ones_like(linearization.gradient))
        assert float(linearization.loss) == pytest.approx(expected, rel=TIGHT)
        assert torch.equal(torch.get_rng_state(), state)


def test_autocast():
    model = mlp().float()
    objective = Objective(model, nn.MSELoss(), (VECTORS.float(), REALS.float()))
    exact = linearize(objective, method="double_backward")
    v = randn(43, seed=1).float()
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            linearization = linearize(objective)
            product = linearization.matvec(v)
        assert float((product - exact.matvec(v)).norm() / exact.matvec(v).norm()) < 3e-2
        assert float(linearization.loss) == pytest.approx(float(exact.loss), rel=3e-2)
        assert float((linearization.gradient - exact.gradient).norm() / exact.gradient.norm()) < 3e-2
    compare(linearize(objective), exact, 1e-5)  # and what was traced under autocast does not serve without it


def test_autocast_inside_the_model():
    def narrow(self: Calling, h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            inner = self.inner(h)
        return torch.tanh(inner.float())

    model = calling(narrow, inner=nn.Linear(4, 4)).float()
    objective = Objective(model, nn.MSELoss(), (VECTORS.float(), REALS.float()))
    for _ in range(3):
        compare(linearize(objective), linearize(objective, method="double_backward"), 3e-2)


@BOTH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float32, 1e-5)])
@pytest.mark.parametrize("method", ["auto", "traced", "double_backward"])
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_products_in_lower_precision(method, dtype, tolerance, microbatch_size, curvature):
    objective = Objective(mlp(), nn.CrossEntropyLoss(), (VECTORS, CLASSES), microbatch_size=microbatch_size)
    exact = linearize(objective, curvature, method="double_backward")
    v = randn(43, seed=1)
    for _ in range(3):
        linearization = linearize(objective, curvature, dtype=dtype, method=method)
        product = linearization.matvec(v)
        assert product.dtype == torch.float64
        error = float((product - exact.matvec(v)).norm() / exact.matvec(v).norm())
        assert 1e-12 < error < tolerance
        form = float(exact.quadratic_form(v))
        assert float(linearization.quadratic_form(v)) == pytest.approx(form, rel=tolerance)
        assert relative(linearization.loss, exact.loss) < 1e-14
        assert relative(linearization.gradient, exact.gradient) < 1e-14
    assert linearization.method == ("traced" if method == "auto" else method)


# ---------------------------------------------------------------------------------------------------------------------
# Memory


MEMORY = {
    "plain": (mlp, nn.CrossEntropyLoss(), CLASSES),
    "dropout": (lambda: dropping(nn.Dropout(0.5)), nn.MSELoss(), REALS),
    "batch_norm": (lambda: seeded(normalized).train(), nn.CrossEntropyLoss(), CLASSES),
}


@BOTH
@pytest.mark.parametrize("method", ["auto", "traced", "double_backward"])
@pytest.mark.parametrize("name", MEMORY)
def test_chunks_that_do_not_fit_are_recomputed(name, method, curvature):
    build, loss, targets = MEMORY[name]
    model, data = build(), (VECTORS[:10], targets[:10])  # batch norm needs two rows
    torch.manual_seed(0)
    kept = linearize(Objective(model, loss, data, microbatch_size=2), curvature, method=method)
    assert kept.recomputed == 0
    counts = set()
    for limit in (0, *(2**k for k in range(9, 16))):
        torch.manual_seed(0)
        objective = Objective(model, loss, data, microbatch_size=2, memory_limit=limit)
        for _ in range(2 if limit == 0 else 1):
            linearization = linearize(objective, curvature, method=method)
            compare(linearization, kept, 1e-12)
            if limit == 0:
                assert linearization.recomputed == 5
        counts.add(linearization.recomputed)
    assert len(counts) > 2  # some limit lets some chunks be kept
    if method == "traced":
        assert linearization.method == "traced"


# ---------------------------------------------------------------------------------------------------------------------
# Several outputs


class MeanAndVariance(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.mean, self.variance = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.trunk(inputs))
        return self.mean(h), nn.functional.softplus(self.variance(h)) + 0.1


class Named(nn.Module):
    """Outputs by name, one of them computed from another."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.trunk(inputs))
        return {"hidden": h, "logits": self.head(h), "nothing": torch.ones(3)}


def of_named(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return (outputs["logits"] - targets).pow(2).mean() + (outputs["hidden"] * outputs["logits"]).pow(2).sum()


def jacobian_of(model: nn.Module, outputs_of: Callable[[], Tensor]) -> Tensor:
    rows = []
    for entry in outputs_of().reshape(-1):
        slopes = torch.autograd.grad(entry, list(model.parameters()), retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([slope.reshape(-1) for slope in slopes]))
    return torch.stack(rows)


@pytest.mark.parametrize("method", ["auto", "traced", "linearize", "double_backward"])
def test_mean_and_variance(method):
    model = seeded(MeanAndVariance)
    jacobian = jacobian_of(model, lambda: torch.cat(model(VECTORS)))
    _, variance = model(VECTORS)
    diagonal = torch.cat([1.0 / variance, 0.5 / variance.square()]).reshape(-1).detach() / variance.numel()
    matrix = jacobian.T @ (diagonal[:, None] * jacobian)
    objective = Objective(model, nn.GaussianNLLLoss(), (VECTORS, REALS))
    loss = nn.GaussianNLLLoss()(model(VECTORS)[0], REALS, model(VECTORS)[1])
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
    v = randn(len(matrix), seed=1)
    try:
        for _ in range(3):
            linearization = linearize(objective, method=method)
            assert relative(linearization.loss, loss.detach()) < TIGHT
            assert relative(linearization.gradient, gradient) < TIGHT
            assert relative(linearization.matvec(v), matrix @ v) < TIGHT
            assert float(linearization.quadratic_form(v)) == pytest.approx(float(v @ matrix @ v), rel=TIGHT)
    except RuntimeError as refusal:  # torch's loss asks whether a variance is negative
        assert method in ("traced", "linearize")
        assert REFUSAL.search(str(refusal)), refusal  # noqa: PT017
        return
    chunked = Objective(model, nn.GaussianNLLLoss(), (VECTORS, REALS), microbatch_size=4)
    assert relative(linearize(chunked, method=method).matvec(v), matrix @ v) < TIGHT


@pytest.mark.parametrize("method", ["auto", "traced", "linearize", "double_backward"])
def test_outputs_by_name(method):
    model = seeded(Named)

    def flat() -> Tensor:
        outputs = model(VECTORS)
        return torch.cat([outputs["hidden"], outputs["logits"]])

    def loss_of(z: Tensor) -> Tensor:
        hidden, logits = z.view(-1, 3).split(len(VECTORS))
        return of_named({"hidden": hidden, "logits": logits}, REALS)

    inner = torch.autograd.functional.hessian(loss_of, flat().detach().reshape(-1))
    jacobian = jacobian_of(model, flat)
    matrix = jacobian.T @ inner @ jacobian
    objective = Objective(model, of_named, (VECTORS, REALS))
    for _ in range(3):
        linearization = linearize(objective, method=method)
        v = randn(len(matrix), seed=1)
        assert relative(linearization.matvec(v), matrix @ v) < TIGHT
        assert float(linearization.quadratic_form(v)) == pytest.approx(float(v @ matrix @ v), rel=TIGHT)
    assert linearization.method == ("traced" if method == "auto" else method)
    right(objective, "hessian")
    right(objective, "hessian")


# ---------------------------------------------------------------------------------------------------------------------
# Keeping


@pytest.mark.parametrize(
    "build", [mlp, lambda: dropping(nn.Dropout(0.5)), lambda: nn.GRU(4, 3).double(), lambda: seeded(normalized)]
)
@BOTH
def test_a_model_is_let_go_with_its_traces(build, curvature):
    def trace_one() -> weakref.ref:
        model, captured = build(), CLASS_WEIGHTS.clone()

        def loss(z: Tensor, y: Tensor) -> Tensor:
            return (captured * (z - y) ** 2).mean() + 0.1 * sum(p.square().sum() for p in model.parameters())

        forward = (lambda model, inputs: model(inputs)[0]) if isinstance(model, nn.GRU) else None
        objective = Objective(model, loss, (VECTORS, REALS), forward=forward)
        for _ in range(3):
            linearization = linearize(objective, curvature)
            linearization.matvec(torch.ones_like(linearization.gradient))
        assert linearization.method == "traced", linearization.reason
        return weakref.ref(model)

    gone = trace_one()
    gc.collect()
    assert gone() is None


def test_copies_and_pickles_of_a_traced_model():
    model = mlp()
    settled(squared(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    copy.deepcopy(optimizer.state_dict())
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for twin in twins:
        with torch.no_grad():
            twin[0].weight.add_(1.0)
        settled(squared(twin))
    assert right(squared(model)).method == "traced"


def test_a_growing_history_in_the_model():
    # A list that is none of the computation's business may cost the trace, never the numbers.
    model = calling(lambda self, h: torch.tanh(h), history=[])
    for step in range(2 * traces.MAX_TRACES):
        model.history.append(step)
        right(squared(model))
    assert len(traces._entries[model]) <= traces.MAX_TRACES


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_a_batch_that_overflows_does_not_end_tracing():
    """Two methods overflow in different places: that is no disagreement."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(16, 3), torch.randn(16, 2)
    for scale in (1.0, 1e19, 1.0):
        linear = linearize(Objective(model, nn.MSELoss(), (scale * x, y)))
        product = linear.matvec(torch.ones(linear.space.size))
    assert linear.method == "traced"
    assert product.isfinite().all()
