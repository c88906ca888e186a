"""Products by blocks in bfloat16: the right cuts are chosen, and the same ones whenever the choice is made."""

import copy

import pytest
import torch
from torch import nn

from flat_parts import parts
from latephase import HessianFree, Objective, layerwise
from latephase.curvature import linearize, over_blocks

ROWS = 13


def network(kind: str) -> nn.Module:
    first, last = nn.Linear(4, 5), nn.Linear(5, 3)
    return {
        "batch norm": lambda: nn.Sequential(first, nn.BatchNorm1d(5), nn.Tanh(), last),
        "layer norm": lambda: nn.Sequential(first, nn.LayerNorm(5), nn.GELU(), last),
        "plain": lambda: nn.Sequential(first, nn.Tanh(), last),
        "deep": lambda: nn.Sequential(first, *[x for _ in range(3) for x in (nn.Linear(5, 5), nn.Tanh())], last),
        "wide": lambda: nn.Sequential(
            nn.Linear(4, 100), nn.Softplus(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 3)
        ),
    }[kind]()


def batch(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 4), torch.randint(3, (rows,))


@pytest.mark.parametrize("kind", ["batch norm", "layer norm", "plain", "deep", "wide"])
def test_products_are_those_of_the_whole_precision(kind):
    for seed in range(2):
        torch.manual_seed(seed)
        model = network(kind)
        sizes = [sum(p.numel() for p in group["params"]) for group in layerwise(model)]
        objective = Objective(model, nn.CrossEntropyLoss(), batch())
        v = torch.randn(sum(sizes))
        exact = over_blocks(linearize(objective, method="traced"), sizes).matvec(v)
        for expected in (1, 30):  # few products and many have other plans
            narrow = over_blocks(linearize(objective, dtype=torch.bfloat16, method="traced"), sizes, expected)
            product = narrow.matvec(v)
            for one, other in zip(product.split(sizes), exact.split(sizes), strict=True):
                assert (one - other).norm() <= 0.06 * other.norm(), (seed, narrow.methods)


@pytest.mark.parametrize("kind", ["batch norm", "layer norm"])
def test_a_run_that_is_resumed_takes_the_same_steps(kind):
    # A fresh process chooses its cuts at other parameters, on other data.
    for seed in (0, 2):
        torch.manual_seed(seed)
        model, data = network(kind), [batch() for _ in range(4)]
        options = {"dtype": torch.bfloat16, "blocks": True, "max_iter": 3}
        optimizer = HessianFree(layerwise(model), **parts(**options))
        for part in data[:3]:
            optimizer.step(Objective(model, nn.CrossEntropyLoss(), part))
        twin = copy.deepcopy(model)
        resumed = HessianFree(layerwise(twin), **parts(**options))
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step(Objective(model, nn.CrossEntropyLoss(), data[3]))
        resumed.step(Objective(twin, nn.CrossEntropyLoss(), data[3]))
        assert all(map(torch.equal, model.parameters(), twin.parameters())), seed
        assert optimizer.report.block_methods == resumed.report.block_methods
