"""What is traced and kept between steps, against a fresh linearisation without a trace."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from product_cases import CLASS_WEIGHTS, REALS, VECTORS, normalized, randn, seeded
from torch import Tensor, nn
from trace_cases import BOTH, OTHER, calling, compare, dropping, mlp, right, settled, squared

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.tracing import cache as traces

pytestmark = pytest.mark.usefixtures("same_numbers")


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
