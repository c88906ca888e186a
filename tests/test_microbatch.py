"""Chunks that fit: the size is measured, and the function stays the same."""

import pytest
import torch
from torch import nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.objective.memory import available, peak_bytes
from latephase.objective.microbatch import STEP_FACTOR


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)).double()


def data(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, 20, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (rows,), generator=generator)


def gradient_bytes(model: nn.Module, rows: int) -> int:
    loss, (inputs, targets), parameters = nn.CrossEntropyLoss(), data(rows), list(model.parameters())
    return peak_bytes(lambda: torch.autograd.grad(loss(model(inputs), targets), parameters), inputs.device)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_the_largest_chunk_that_fits_is_taken(share):
    """Each chunk's step fits the limit, and one of a tenth more rows would not."""
    model = network()
    limit = int(share * STEP_FACTOR * gradient_bytes(model, 1000))
    objective = Objective(model, nn.CrossEntropyLoss(), data(1000), microbatch_size="auto", memory_limit=limit)
    rows = max(chunk.rows for chunk in objective.chunks)
    assert len({chunk.rows for chunk in objective.chunks}) <= 2
    assert STEP_FACTOR * gradient_bytes(model, rows) <= 1.05 * limit
    fewer = len(objective.chunks) - 1
    assert STEP_FACTOR * gradient_bytes(model, -(-1000 // fewer)) > 0.95 * limit


def test_a_batch_that_fits_stays_whole_and_one_row_is_the_least():
    model = network()
    assert len(Objective(model, nn.CrossEntropyLoss(), data(100), microbatch_size="auto").chunks) == 1
    tiny = Objective(model, nn.CrossEntropyLoss(), data(5), microbatch_size="auto", memory_limit=1)
    assert [chunk.rows for chunk in tiny.chunks] == [1] * 5
    assert len(Objective(model, nn.CrossEntropyLoss(), data(1), microbatch_size="auto", memory_limit=1).chunks) == 1


def test_the_function_is_the_same_and_memory_is_measured_once():
    model, calls = network(), []
    model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    options = {"microbatch_size": "auto", "memory_limit": 300_000}
    objective = Objective(model, nn.CrossEntropyLoss(), data(1000), **options)
    assert calls == [8, 16, 32]
    Objective(model, nn.CrossEntropyLoss(), data(1000), **options)
    assert len(calls) == 3
    whole = linearize(Objective(model, nn.CrossEntropyLoss(), data(1000)))
    cut = linearize(objective)
    v = torch.randn(whole.space.size, dtype=torch.float64)
    assert len(objective.chunks) > 3
    # Sums in another order: rounding of float64 over 1000 rows.
    torch.testing.assert_close(cut.loss, whole.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(cut.gradient, whole.gradient, rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(cut.matvec(v), whole.matvec(v), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("bad", [{"memory_limit": -1}, {"memory_limit": 1.5}, {"microbatch_size": "largest"}])
def test_bad_options_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Objective(network(), nn.CrossEntropyLoss(), data(4), **bad)


def test_the_machine_has_memory():
    assert 2**20 < available(torch.device("cpu")) < 2**50
