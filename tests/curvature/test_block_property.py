"""Products over blocks of random small networks and random partitions against dense matrices."""

from itertools import pairwise

import torch
from block_oracle import check, dense_ggn, objective_of
from hypothesis import given, settings
from hypothesis import strategies as st
from product_cases import Case, randn, seeded
from torch import Tensor, nn


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Skip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(x)


ACTIVATIONS = [nn.Tanh, nn.ReLU, nn.Identity, nn.Softplus, Centred, Skip]
LOSSES = {
    "classes": (nn.CrossEntropyLoss(), lambda z: torch.arange(len(z)) % z.shape[1]),
    "squares": (nn.MSELoss(reduction="sum"), torch.cos),
    "bits": (nn.BCEWithLogitsLoss(), lambda z: (z > 0.1).double()),
    "own": (lambda z, y: (z - y).pow(2).sum().sqrt(), lambda z: z + 1.0),
}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    kinds=st.lists(st.integers(0, len(ACTIVATIONS) - 1), min_size=4, max_size=4),
    biases=st.lists(st.booleans(), min_size=4, max_size=4),
    loss=st.sampled_from(list(LOSSES)),
    rows=st.integers(1, 7),
    shuffled=st.randoms(use_true_random=False),
    cuts=st.sets(st.integers(1, 7)),
    expected=st.sampled_from([1, 5, 40, 1000]),
    seed=st.integers(0, 1000),
)
def test_any_small_network_and_any_partition(widths, kinds, biases, loss, rows, shuffled, cuts, expected, seed):
    def build() -> nn.Module:
        layers = [
            layer
            for pair, kind, bias in zip(pairwise(widths), kinds, biases, strict=False)
            for layer in (nn.Linear(*pair, bias=bias), ACTIVATIONS[kind]())
        ]
        return nn.Sequential(*layers[:-1])

    model = seeded(build, seed)
    x = randn(rows, widths[0], seed=seed)
    function, targets = LOSSES[loss]
    case = Case(build, function, x, targets(model(x).detach()))
    p = list(model.parameters())
    shuffled.shuffle(p)
    ends = [0, *sorted(cut for cut in cuts if cut < len(p)), len(p)]
    blocks = [p[begin:end] for begin, end in pairwise(ends)]
    check(objective_of(case, model), dense_ggn(case, model), blocks, expected)
