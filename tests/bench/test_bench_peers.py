"""Products of the packages that we compare with: an independent oracle, and proof that all compute one thing."""

import pytest
import torch
from torch import nn

from latephase import Objective
from latephase.bench.contender import default_method, ours, set_up
from latephase.bench.networks import NETWORKS
from latephase.bench.peers import PEERS, versions
from latephase.curvature import linearize
from latephase.problems.architectures import LSTMClassifier, Transformer, autoencoder


class Characters(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = Transformer(7, layers=2, width=16, heads=2, context=6)

    def forward(self, symbols):
        return self.transformer(symbols).transpose(1, 2)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


CASES = {
    "autoencoder": (lambda: autoencoder((12, 9, 4)), nn.BCEWithLogitsLoss(), "reconstruction"),
    "convolutions": (convolutional, nn.CrossEntropyLoss(), (2, 6, 6)),
    "LSTM": (lambda: LSTMClassifier(width=5, layers=2, outputs=3), nn.CrossEntropyLoss(), (4, 1)),
    "transformer": (Characters, nn.CrossEntropyLoss(), "characters"),
}


def build(name):
    torch.manual_seed(0)
    make, loss, kind = CASES[name]
    model = make().eval()
    if kind == "reconstruction":
        inputs = targets = torch.rand(8, 12)
    elif kind == "characters":
        inputs, targets = torch.randint(7, (5, 6)), torch.randint(7, (5, 6))
    else:
        inputs, targets = torch.randn(8, *kind), torch.randint(3, (8,))
    return model, loss, inputs, targets, torch.randn(sum(p.numel() for p in model.parameters()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # of what they import
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("name", CASES)
def test_products_of_others_equal_ours(peer, name):
    if versions()[peer] is None:
        pytest.skip(f"{peer} is not installed")
    model, loss, inputs, targets, v = build(name)
    contender = PEERS[peer](model, loss, inputs, targets, v)
    expected = linearize(Objective(model, loss, (inputs, targets)), method="double_backward").matvec(v)
    assert float(expected.norm()) > 0
    for _ in range(2):
        torch.testing.assert_close(contender.product(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    gradient, product = contender.first()
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    by_hand = torch.autograd.grad(loss(model(inputs), targets), list(model.parameters()))
    torch.testing.assert_close(gradient, by_hand)


@pytest.mark.parametrize("name", ["autoencoder", "convolutions"])
def test_our_contenders_compute_one_product(name):
    model, loss, inputs, targets, v = build(name)
    objective = Objective(model, loss, (inputs, targets))
    expected = linearize(objective, method="double_backward").matvec(v)
    for method, options in ours(["float32", "bfloat16"], all_methods=True, compiled=False).items():
        contender = set_up(objective, v, options)
        tolerance = 0.05 if "bfloat16" in method else 1e-5
        loss_value, gradient, product = contender.first()
        for found in (contender.product(), product):
            assert float((found - expected).norm() / expected.norm()) < tolerance, method
        assert contender.quadratic_form is not None
        assert float(contender.quadratic_form()) == pytest.approx(float(v @ expected), rel=tolerance)
        assert float(loss_value) == pytest.approx(float(loss(model(inputs), targets).detach()), rel=1e-5)
        assert gradient.shape == v.shape


def test_the_default_method_comes_first():
    names = list(ours(["float32", "bfloat16"], all_methods=True, compiled=True))
    default = default_method()
    assert names[:3] == [default, f"{default}, bfloat16", f"{default}, compiled"]
    assert "double_backward" in names
    assert list(ours(["float32"], False, False)) == [default]


def test_an_option_that_linearize_does_not_know_is_named():
    model, loss, inputs, targets, v = build("autoencoder")
    with pytest.raises(ValueError, match="linearize has no argument unheard_of"):
        set_up(Objective(model, loss, (inputs, targets)), v, {"method": "auto", "unheard_of": True})


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_the_same_at_every_call_and_deterministic(name):
    network = NETWORKS[name]
    model, batch, evaluation = network.build(torch.device("cpu"))
    other, again, _ = network.build(torch.device("cpu"))
    assert len(batch[0]) == len(batch[1]) == network.batch_size
    assert len(evaluation[0]) == network.batch_size // 2
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(x, y) for x, y in zip(batch, again, strict=True))
    inputs, targets = batch[0][:2], batch[1][:2]
    with torch.no_grad():
        first, second = (float(network.loss(model(inputs), targets)) for _ in range(2))
    assert first == second
    assert 0 < first < 10
