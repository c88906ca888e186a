"""Random numbers, buffers and data of a model that is traced."""

import copy

import pytest
import torch
from dense_oracle import relative
from product_cases import TIGHT, VECTORS, normalized, randn, seeded
from torch import Tensor, nn
from trace_cases import BOTH, OTHER, Calling, calling, compare, dropping, right, settled, squared

from latephase.curvature import linearize

pytestmark = pytest.mark.usefixtures("same_numbers")


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
