import gc

import pytest
import torch
from torch import nn

from latephase.objective.memory import PeakMemory, peak_bytes

N = 1000
BYTES = 4 * N


def test_what_is_alive_at_once_counts():
    x = torch.ones(N)
    with PeakMemory() as memory:
        y = x + 1
        z = y * 2
        del y
        assert memory.live == BYTES
        w = z - 1
    assert memory.peak == 2 * BYTES
    assert memory.live == 2 * BYTES
    del z, w
    assert memory.live == 0
    assert memory.peak == 2 * BYTES


def test_views_and_in_place_operators_make_nothing():
    x = torch.ones(N)
    with PeakMemory() as memory:
        x.add_(1)
        x.view(10, 100).t()[2:].mul_(2)
        x.detach().requires_grad_()
    assert memory.peak == 0


def test_a_view_keeps_its_storage_alive():
    with PeakMemory() as memory:
        part = torch.zeros(N)[:3]
        assert memory.live == BYTES
        del part
        assert memory.live == 0


def test_what_was_there_before_does_not_count_even_when_it_goes():
    x = torch.ones(N)
    with PeakMemory() as memory:
        y = x + 1
        del x
        assert memory.live == BYTES
    del y
    assert memory.live == 0


def test_storages_count_once_and_results_of_several_outputs_each():
    with PeakMemory() as memory:
        values, indices = torch.zeros(N).sort()
        both = (values, values.view(-1), values[:5])
    assert memory.peak == BYTES + BYTES + 8 * N
    del both
    assert memory.live == BYTES + 8 * N
    del values, indices
    assert memory.live == 0


def test_a_buffer_at_the_same_address_is_counted_anew():
    with PeakMemory() as memory:
        for _ in range(20):
            x = torch.zeros(N)
            del x
    assert memory.peak == BYTES
    assert memory.live == 0


def test_tensors_that_autograd_saves_are_alive_until_the_graph_goes():
    x = torch.ones(N, requires_grad=True)
    with PeakMemory() as memory:
        y = x.exp()  # saved, as its own derivative
        z = y.exp()  # saved
        total = z.sum()
        del y, z
        assert memory.live == 2 * BYTES + 4
        del total
    assert memory.live == 0


def test_the_backward_pass_counts():
    x = torch.ones(N, requires_grad=True)
    with PeakMemory() as memory:
        x.exp().exp().sum().backward()
    assert x.grad is not None
    # the two exponentials that are saved, and of the gradients at least one
    assert 3 * BYTES <= memory.peak <= 5 * BYTES
    gc.collect()
    assert memory.live == BYTES
    x.grad = None
    assert memory.live == 0


def test_saved_activations_of_a_network_are_what_the_layers_say():
    depth, rows, width = 6, 500, 20
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
    model = nn.Sequential(*layers)
    inputs = torch.randn(rows, width)
    with PeakMemory() as memory:
        outputs = model(inputs)
        # tanh saves its output, which is the next layer's input; a linear layer's own output is let go
        assert memory.live == depth * rows * width * 4
    with PeakMemory() as without, torch.no_grad():
        outputs = model(inputs)
    del outputs
    assert without.peak <= 3 * rows * width * 4
    assert without.live == 0


def test_reference_cycles_count_until_they_are_collected():
    with PeakMemory() as memory:
        ring: list = [torch.zeros(N)]
        ring.append(ring)
        del ring
        gc.collect()
        assert memory.live == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # of torch itself
def test_function_transforms_are_seen_through():
    x = torch.ones(N)
    with PeakMemory() as memory:
        value, tangent = torch.func.jvp(torch.exp, (x,), (x,))
        assert memory.live == 2 * BYTES
        del value, tangent
        gc.collect()
    assert 2 * BYTES <= memory.peak <= 4 * BYTES
    assert memory.live == 0


def test_what_has_no_storage_is_passed_over():
    with PeakMemory() as memory:
        torch.zeros(N, device="meta") + 1
        sparse = torch.eye(3).to_sparse()
        assert sparse._nnz() == 3
    assert memory.peak < BYTES


@pytest.mark.parametrize("make", [lambda: torch.empty(N), lambda: torch.empty(N).uniform_(), lambda: torch.randn(N)])
def test_peak_bytes_is_the_same_each_time(make):
    found = [peak_bytes(make, torch.device("cpu")) for _ in range(3)]
    assert found == [BYTES] * 3
