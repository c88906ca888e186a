"""Models and data as users have them: narrow dtypes, sparse gradients, any mapping, a forward that differentiates."""

from collections import UserDict

import pytest
import torch
from torch import nn

from latephase import HessianFree, Objective
from latephase.curvature import dense, linearize
from latephase.solve import CGStatus


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_outputs_reach_the_loss_in_float32(dtype):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).to(dtype)
    inputs, targets = torch.randn(8, 3).to(dtype), torch.randint(2, (8,))
    value = Objective(model, nn.CrossEntropyLoss(), (inputs, targets)).value()
    assert value.dtype == torch.float32
    assert torch.equal(value, nn.functional.cross_entropy(model(inputs).float(), targets).detach())


def test_a_loss_with_narrow_tensors_of_its_own_gets_narrow_outputs():
    model = nn.Linear(3, 2).bfloat16()
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    value = Objective(model, loss, (torch.randn(8, 3).bfloat16(), torch.randint(2, (8,)))).value()
    assert value.dtype == torch.bfloat16


def test_a_bfloat16_model_trains_far_below_what_a_bfloat16_loss_could_tell_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1)).bfloat16()
    inputs = torch.randn(128, 10).bfloat16()
    objective = Objective(model, nn.MSELoss(), (inputs, inputs[:, :1].float().sin()))
    optimizer = HessianFree(model.parameters())
    start = float(objective.value())
    for _ in range(20):
        optimizer.step(objective)
    assert float(objective.value()) < 0.01 * start


def test_inputs_may_be_any_mapping():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, a, b):
            return self.layer(torch.stack([a, b], dim=1))

    model, a, b, y = Model(), torch.randn(6), torch.randn(6), torch.randn(6, 1)
    objective = Objective(model, nn.MSELoss(), (UserDict(a=a, b=b), y), microbatch_size=4)
    expected = nn.functional.mse_loss(model(a, b), y).item()
    assert objective.value().item() == pytest.approx(expected, rel=1e-6)


def test_sparse_gradients_are_taken_as_dense_ones():
    torch.manual_seed(0)
    tokens, targets = torch.randint(7, (12, 2)), torch.randn(12, 6)
    products = []
    for sparse in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(7, 3, sparse=sparse), nn.Flatten()).double()
        linear = linearize(Objective(model, nn.MSELoss(), (tokens, targets.double())))
        products.append((linear.gradient, dense(linear.matvec, 21)))
    for ours, theirs in zip(*products, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=0)  # the same sums in another order


def test_a_forward_pass_that_differentiates_trains_a_physics_informed_network():
    # u' = -u, u(0) = 1 on [0, 1]: its solution is exp(-x).
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    x = torch.linspace(0, 1, 50, dtype=torch.float64)[:, None].requires_grad_()

    def forward():
        u = net(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        residual = torch.cat([(slope + u).flatten(), net(torch.zeros_like(x[:1])).flatten() - 1])
        return residual.square().mean(), residual

    objective = Objective.from_forward(net, forward)
    optimizer = HessianFree(net.parameters())
    for _ in range(30):
        optimizer.step(objective)
    assert float(objective.value()) < 1e-6
    assert torch.allclose(net(x), torch.exp(-x), atol=1e-2)


def test_a_batch_whose_targets_are_all_ignored_is_rejected_as_not_finite():
    model = nn.Linear(3, 2)
    before = [p.clone() for p in model.parameters()]
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(4, 3), torch.full((4,), -100)))
    optimizer = HessianFree(model.parameters())
    optimizer.step(objective)
    report = optimizer.report
    assert not report.accepted
    assert report.cg_status == (CGStatus.NONFINITE,)
    assert report.products == 0
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.ones(4, 2), [1.0] * 4), "the batch must be a pair .* got a tuple of Tensor, list"),
        ((torch.ones(4, 2), torch.ones(4, 1).numpy()), "the batch .* tuple of Tensor, ndarray; torch.as_tensor"),
        (
            (torch.ones(4, 2), torch.ones(4, 2), torch.ones(4, 1)),
            r"tuple of Tensor, Tensor, Tensor; .*\(\(x1, x2\), y\)",
        ),
    ],
    ids=["list", "array", "triple"],
)
def test_data_of_another_form_is_told_what_to_become(data, message):
    with pytest.raises(TypeError, match=message):
        Objective(nn.Linear(2, 1), nn.MSELoss(), data)
