"""Gradient checkpoints in the model: the recomputation would find other kernels and other parameters."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential  # bound early, as users do

from latephase import KFAC, AdamQLR, HessianFree, Objective, check
from latephase.curvature import linearize


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "attention": Attention,
    "lstm": Recurrent,
    "norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh()),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Tanh()),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True),
}


class Net(nn.Module):
    """A block, checkpointed in one of the ways or in none, between linear layers."""

    def __init__(self, block: nn.Module, way: str):
        super().__init__()
        self.first, self.block, self.last, self.way = nn.Linear(3, 4), block, nn.Linear(4, 2), way

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way == "none":
            x = self.block(x)
        elif self.way == "sequential":
            x = checkpoint_sequential(nn.Sequential(self.block, nn.Tanh()), 2, x, use_reentrant=False)
        elif self.way == "module":
            x = torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False)
        else:
            x = checkpoint(self.block, x, use_reentrant=self.way == "reentrant")
        return self.last(torch.tanh(x).mean(1))


def pair(block: str, way: str) -> tuple[Objective, Objective]:
    torch.manual_seed(0)
    nets = [Net(BLOCKS[block](), way).double(), Net(BLOCKS[block](), "none").double()]
    nets[1].load_state_dict(nets[0].state_dict())
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(5, 3, 3, generator=generator).double(), torch.tensor([0, 1, 0, 1, 1])
    found = tuple(Objective(net, nn.CrossEntropyLoss(), data) for net in nets)
    for objective in found:
        objective._seed = 7
    return found


@pytest.mark.parametrize("way", ["non_reentrant", "reentrant", "module"])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_checkpointed_block_has_the_derivatives_of_the_block(block, way):
    ours, plain = pair(block, way)
    v = torch.randn(ours.space().size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(ours.value(), plain.value(), rtol=1e-12)
    for curvature in ("ggn", "hessian"):
        expected = linearize(plain, curvature=curvature, method="double_backward")
        for method in ("double_backward", "auto"):
            found = linearize(ours, curvature=curvature, method=method)
            assert torch.allclose(found.gradient, expected.gradient, rtol=1e-9, atol=1e-12)
            assert torch.allclose(found.matvec(v), expected.matvec(v), rtol=1e-9, atol=1e-12)


def test_checkpoints_are_recorded_as_what_they_hold():
    ours, plain = pair("encoder", "non_reentrant")
    v = torch.ones(ours.space().size, dtype=torch.float64)
    for curvature in ("ggn", "hessian"):
        traced = linearize(ours, curvature=curvature, method="traced")
        assert traced.method == "traced"
        expected = linearize(plain, curvature=curvature, method="double_backward")
        assert torch.allclose(traced.matvec(v), expected.matvec(v), rtol=1e-9, atol=1e-12)


def test_a_sequence_of_checkpoints():
    ours, _ = pair("attention", "sequential")
    v = torch.ones(ours.space().size, dtype=torch.float64)
    products = [linearize(ours, method=method).matvec(v) for method in ("double_backward", "traced")]
    assert torch.allclose(*products, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [HessianFree, KFAC, AdamQLR])
def test_steps_of_every_optimizer_are_those_of_the_plain_model(make):
    for block in ("attention", "lstm"):
        after = []
        for objective in pair(block, "non_reentrant"):
            torch.manual_seed(5)
            optimizer = make(objective.model.parameters())
            for _ in range(2):
                optimizer.step(objective)
            after.append(torch.cat([p.detach().reshape(-1) for p in objective.model.parameters()]))
        assert torch.allclose(*after, rtol=1e-6, atol=1e-9)


def test_the_gradient_at_another_point_is_that_of_the_point():
    """A recomputation after the pass would find the model's own parameters."""
    ours, plain = pair("norm", "non_reentrant")
    reports = [check(objective) for objective in (ours, plain)]
    assert [f.severity for f in reports[0].findings] == [f.severity for f in reports[1].findings]


def test_the_ordinary_closure_keeps_checkpoints_that_save_memory():
    ours, plain = pair("norm", "non_reentrant")
    calls = []
    ours.model.block.register_forward_pre_hook(lambda *_: calls.append(1))
    assert torch.equal(ours(), plain())
    assert len(calls) == 2  # in the forward pass, and in the recomputation
    calls.clear()
    ours.value()
    assert len(calls) == 1


def test_the_ordinary_closure_takes_reentrant_checkpoints():
    """Torch's own refuse `torch.autograd.grad`."""
    ours, plain = pair("lstm", "reentrant")
    assert torch.equal(ours(), plain())
    for p, q in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-12)


def test_afterwards_torch_s_functions_are_its_own():
    names = [(torch, "layer_norm"), (torch.utils.checkpoint, "CheckpointFunction"), (torch, "embedding")]
    before = [getattr(module, name) for module, name in names]
    ours, _ = pair("encoder", "non_reentrant")
    ours.value()
    with pytest.raises(IndexError):
        Objective(nn.Embedding(3, 2), nn.CrossEntropyLoss(), (torch.tensor([5]), torch.tensor([0]))).value()
    assert [getattr(module, name) for module, name in names] == before
