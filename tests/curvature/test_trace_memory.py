"""Chunks that do not fit in memory."""

import pytest
import torch
from product_cases import CLASSES, REALS, VECTORS, normalized, seeded
from torch import nn
from trace_cases import BOTH, compare, dropping, mlp

from latephase import Objective
from latephase.curvature import linearize

pytestmark = pytest.mark.usefixtures("same_numbers")


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
