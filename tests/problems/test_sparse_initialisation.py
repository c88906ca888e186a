import math

import pytest
import torch

from latephase.problems.architectures import autoencoder
from latephase.problems.architectures.layers import sparse_


@pytest.mark.parametrize("inputs", [16, 30, 500, 784, 1000])
@pytest.mark.parametrize("connections", [1, 15])
def test_each_unit_has_exactly_so_many_connections(inputs, connections):
    torch.manual_seed(0)
    weight = sparse_(torch.full((40, inputs), 7.0), connections)
    assert ((weight != 0).sum(dim=1) == connections).all()  # a normal number is zero with probability zero


@pytest.mark.parametrize("connections", [15, 16, 1000])
def test_few_inputs_are_all_connected(connections):
    assert (sparse_(torch.zeros(40, 15), connections) != 0).all()


def test_the_connected_weights_are_standard_normal_and_their_places_uniform():
    torch.manual_seed(0)
    weight = sparse_(torch.empty(4000, 100), std=2.0)
    values = weight[weight != 0]
    assert len(values) == 60_000
    # Five standard errors of mean, variance and fourth moment of 60,000 normal numbers.
    assert abs(values.mean() / 2) < 5 / math.sqrt(60_000)
    assert abs(values.square().mean() / 4 - 1) < 5 * math.sqrt(2 / 60_000)
    assert abs(values.pow(4).mean() / 16 - 3) < 5 * math.sqrt(96 / 60_000)
    # Each input is connected with probability 0.15: five standard errors over 4000 units.
    frequency = (weight != 0).double().mean(dim=0)
    assert (frequency - 0.15).abs().max() < 5 * math.sqrt(0.15 * 0.85 / 4000)


def test_it_draws_from_torchs_generator():
    first, second = (sparse_(torch.manual_seed(3) and torch.empty(20, 50)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, sparse_(torch.empty(20, 50)))


def test_no_connection_is_refused():
    with pytest.raises(ValueError, match="connections must be at least 1, got 0"):
        sparse_(torch.empty(3, 20), 0)


def test_the_autoencoder_takes_it():
    torch.manual_seed(0)
    model = autoencoder((40, 30, 20), initialize=sparse_)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(30, 40), (20, 30), (30, 20), (40, 30)]
    for layer in layers:
        assert ((layer.weight != 0).sum(dim=1) == 15).all()
        assert (layer.bias == 0).all()
