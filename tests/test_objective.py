"""The objective against plain torch: loss, gradient, L2 term, side effects, random numbers, wrapped models."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latephase import Objective
from latephase.curvature import linearize

EXACT = {"rtol": 1e-12, "atol": 1e-14}  # float64: the same sums in another order


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3)).double()


def batch(rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (rows,), generator=generator)


class Named(nn.Module):
    """Takes its inputs by name, position or both."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3).double()

    def forward(self, a, b):
        return self.linear(a) + b


def test_value_and_closure_equal_the_plain_loss_and_gradient(gradient_of):
    model, (x, y) = network(), batch()
    twin = copy.deepcopy(model)
    expected = F.cross_entropy(twin(x), y)
    expected.backward()
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y))
    loss = objective()
    assert not loss.requires_grad
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected.detach(), **EXACT)
    torch.testing.assert_close(objective.value(), expected.detach(), **EXACT)
    torch.testing.assert_close(gradient_of(model), gradient_of(twin), **EXACT)


def test_the_closure_overwrites_old_gradients(gradient_of):
    model, (x, y) = network(), batch()
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y))
    objective()
    once = gradient_of(model).clone()
    objective()
    assert torch.equal(gradient_of(model), once)


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.01),
    lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4, line_search_fn="strong_wolfe"),
], ids=["SGD", "AdamW", "LBFGS"])  # fmt: skip
def test_it_drives_torchs_optimizers_like_a_hand_written_closure(make, flat):
    (x, y), ours, theirs = batch(), network(), network()
    objective, mine, other = Objective(ours, nn.CrossEntropyLoss(), (x, y)), make(ours.parameters()), None
    other = make(theirs.parameters())

    def closure():
        other.zero_grad()
        loss = F.cross_entropy(theirs(x), y)
        loss.backward()
        return loss

    for _ in range(10):
        torch.testing.assert_close(mine.step(objective), other.step(closure).detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("microbatch_size", [None, 5])
@pytest.mark.parametrize("only_weights", [False, True])
def test_weight_decay_is_that_of_sgd(only_weights, microbatch_size, flat):
    (x, y), ours, theirs = batch(), network(), network()
    decay = (0.3, lambda name, p: p.dim() > 1) if only_weights else 0.3
    data = {"microbatch_size": microbatch_size, "weight_decay": decay}
    objective = Objective(ours, nn.CrossEntropyLoss(), (x, y), **data)
    mine = torch.optim.SGD(ours.parameters(), lr=0.1)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.3},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0 if only_weights else 0.3},
    ]
    other = torch.optim.SGD(groups, lr=0.1)
    for _ in range(5):
        decayed = [p for group in groups for p in group["params"] if p.dim() > 1 or not only_weights]
        penalty = sum(0.15 * p.detach().square().sum() for p in decayed)
        other.zero_grad()
        plain = F.cross_entropy(theirs(x), y)
        plain.backward()
        torch.testing.assert_close(objective.value(), plain.detach() + penalty, **EXACT)
        torch.testing.assert_close(mine.step(objective), plain.detach() + penalty, **EXACT)
        other.step()
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-11, atol=1e-13)


def test_weight_decay_leaves_frozen_parameters_out():
    model, (x, y) = network(), batch()
    model[0].requires_grad_(False)
    plain = Objective(model, nn.CrossEntropyLoss(), (x, y)).value()
    penalty = 0.5 * sum(p.detach().square().sum() for p in model[3].parameters())
    decayed = Objective(model, nn.CrossEntropyLoss(), (x, y), weight_decay=1.0).value()
    torch.testing.assert_close(decayed, plain + penalty, **EXACT)


class Sum(nn.Module):
    """Two parameters that enter as a sum: autograd hands out one and the same gradient tensor for both."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([3.0, 5.0], dtype=torch.float64))

    def forward(self, x):
        return x * (self.a + self.b)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_every_parameter_has_a_gradient_of_its_own(decay):
    model = Sum()
    Objective(model, nn.MSELoss(), (torch.ones(1, 2).double(), torch.zeros(1, 2).double()), weight_decay=decay)()
    assert model.a.grad is not None
    assert model.b.grad is not None
    torch.testing.assert_close(model.a.grad, (model.a + model.b + decay * model.a).detach(), **EXACT)
    torch.testing.assert_close(model.b.grad, (model.a + model.b + decay * model.b).detach(), **EXACT)
    before = model.b.grad.clone()
    model.a.grad.mul_(0)  # as clip_grad_norm_ does
    assert torch.equal(model.b.grad, before)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_gradients_can_be_changed_in_place(decay):
    model = Sum()
    Objective.from_forward(model, lambda: (model.a.sum() + model.b.sum(), model.a), weight_decay=decay)()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert model.a.grad is not None
    assert float(model.a.grad.norm()) <= 1e-3


@pytest.mark.parametrize("pack", [
    lambda a, b: (a, b), lambda a, b: [a, b], lambda a, b: {"b": b, "a": a},
], ids=["tuple", "list", "dict"])  # fmt: skip
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_inputs_may_be_a_tree_of_tensors(pack, microbatch_size):
    torch.manual_seed(0)
    model, (x, y) = Named(), batch()
    inputs = pack(x, x.flip(0))
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, y), microbatch_size=microbatch_size)
    torch.testing.assert_close(objective.value(), F.cross_entropy(model(x, x.flip(0)), y).detach(), **EXACT)


def test_forward_replaces_the_call_of_the_model(gradient_of):
    model, (x, _) = network(), batch()
    objective = Objective(model, F.mse_loss, (x, x), forward=lambda model, inputs: model(2 * inputs) - 1)
    expected = F.mse_loss(model(2 * x) - 1, x)
    grads = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(objective(), expected.detach(), **EXACT)
    torch.testing.assert_close(gradient_of(model), torch.cat([g.reshape(-1) for g in grads]), **EXACT)


def test_from_forward_is_any_function_of_the_parameters(gradient_of):
    model, (x, _) = network(), batch()

    def forward():
        outputs = model(x)
        return outputs.pow(4).mean() + model[0].weight.sum(), outputs

    objective = Objective.from_forward(model, forward, weight_decay=0.1)
    squares = sum(p.square().sum() for p in model.parameters())
    expected = model(x).pow(4).mean() + model[0].weight.sum() + 0.05 * squares
    grads = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(objective.value(), expected.detach(), **EXACT)
    torch.testing.assert_close(objective(), expected.detach(), **EXACT)
    torch.testing.assert_close(gradient_of(model), torch.cat([g.reshape(-1) for g in grads]), **EXACT)
    with pytest.raises(ValueError, match="no rows"):
        objective.split(2)
    with pytest.raises(ValueError, match="no rows"):
        objective.subsample(2)


@pytest.mark.parametrize("bad", [lambda m: m(1), lambda m: torch.ones(()), lambda m: (torch.ones(()),) * 3])
def test_from_forward_says_what_the_function_must_return(bad):
    model = nn.Linear(1, 1)
    objective = Objective.from_forward(model, lambda: bad(lambda _: 1.0))
    with pytest.raises(TypeError, match=r"pair|\(loss, outputs\)"):
        objective.value()


@pytest.mark.parametrize("training", [True, False])
def test_value_has_no_side_effect(training, unchanged):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).double().train(training)
    objective = Objective(model, nn.CrossEntropyLoss(), batch(), microbatch_size=5, weight_decay=0.1)
    objective()
    with unchanged(model, generator=True):
        loss = objective.value()
    assert not loss.requires_grad
    with unchanged(model, generator=True):
        assert torch.equal(objective.value(), loss)
        objective.value({"3.bias": torch.zeros(3, dtype=torch.float64)})


def test_value_at_other_parameters():
    model, (x, y) = network(), batch()
    moved = network(seed=1)
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y), weight_decay=0.2)
    expected = Objective(moved, nn.CrossEntropyLoss(), (x, y), weight_decay=0.2).value()
    torch.testing.assert_close(objective.value(dict(moved.named_parameters())), expected, **EXACT)


@pytest.mark.parametrize("microbatch_size", [None, 5])
def test_all_passes_of_a_step_draw_the_same_dropout_masks(microbatch_size):
    model = network(dropout=0.5)
    objective = Objective(model, nn.CrossEntropyLoss(), batch(), microbatch_size=microbatch_size)
    losses = []
    for _ in range(5):
        objective.reseed()
        value = objective.value()
        torch.manual_seed(int(torch.randint(2**31, ())))  # a stranger's draws do not matter
        assert torch.equal(objective.value(), value)
        torch.testing.assert_close(linearize(objective).loss, value, **EXACT)
        losses.append(float(value))
    assert len(set(losses)) == 5, "reseed must draw new masks"


def test_chunks_draw_different_masks():
    model, (x, y) = network(dropout=0.5), batch()
    halves = Objective(model, nn.CrossEntropyLoss(reduction="sum"), [(x[:1], y[:1]), (x[:1], y[:1])] * 4)
    alone = Objective(model, nn.CrossEntropyLoss(reduction="sum"), (x[:1], y[:1]))
    torch.manual_seed(3)
    halves.reseed()
    torch.manual_seed(3)
    alone.reseed()
    assert abs(float(halves.value() - 8 * alone.value())) > 1e-6


def test_compiled_modules_are_unwrapped(gradient_of):
    model, (x, y) = network(), batch()
    objective = Objective(torch.compile(model, backend="eager"), nn.CrossEntropyLoss(), (x, y))
    assert objective.model is model
    torch.testing.assert_close(objective(), F.cross_entropy(model(x), y).detach(), **EXACT)


def test_fully_sharded_modules_are_refused():
    kind = type("FullyShardedDataParallel", (nn.Linear,), {})
    with pytest.raises(ValueError, match="FSDP"):
        Objective(kind(3, 3), nn.CrossEntropyLoss(), batch())


def test_a_model_that_returns_its_logits_in_an_object_is_told_what_to_give():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return Output(self.linear(x))

    objective = Objective(Model(), nn.CrossEntropyLoss(), (torch.zeros(4, 3), torch.zeros(4).long()))
    with pytest.raises(TypeError) as raised:
        objective.value()
    assert "returns Output, whose logits" in raised.value.__notes__[0]
