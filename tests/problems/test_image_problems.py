"""Architectures, first values and data of the problems on images, against the tables of DeepOBS and the papers."""

import math
import os

import pytest
import torch
from torch import nn

from latephase import problems
from latephase.problems import data
from latephase.problems.architectures import CharLSTM, cnn_2c2d, deepobs_mlp, resnet_18, resnet_20

DATA = pytest.mark.skipif("LATEPHASE_DATA" not in os.environ, reason="LATEPHASE_DATA is not set")

XAVIER_NORMAL, XAVIER_UNIFORM = "xavier_normal", "xavier_uniform"
CUT = 0.8796256610342398
"""Standard deviation of a standard normal variable cut at two."""

# layer: weight shape, rule or standard deviation before the cut, bias
TABLES = {
    "cifar10_3c3d": [
        ((64, 3, 5, 5), XAVIER_NORMAL, 0.0),
        ((96, 64, 3, 3), XAVIER_NORMAL, 0.0),
        ((128, 96, 3, 3), XAVIER_NORMAL, 0.0),
        ((512, 1152), XAVIER_UNIFORM, 0.0),
        ((256, 512), XAVIER_UNIFORM, 0.0),
        ((10, 256), XAVIER_UNIFORM, 0.0),
    ],
    "cifar100_allcnnc": [
        ((96, 3, 3, 3), XAVIER_NORMAL, 0.1),
        ((96, 96, 3, 3), XAVIER_NORMAL, 0.1),
        ((96, 96, 3, 3), XAVIER_NORMAL, 0.1),
        ((192, 96, 3, 3), XAVIER_NORMAL, 0.1),
        ((192, 192, 3, 3), XAVIER_NORMAL, 0.1),
        ((192, 192, 3, 3), XAVIER_NORMAL, 0.1),
        ((192, 192, 3, 3), XAVIER_NORMAL, 0.1),
        ((192, 192, 1, 1), XAVIER_NORMAL, 0.1),
        ((100, 192, 1, 1), XAVIER_NORMAL, 0.1),
    ],
    "fmnist_2c2d": [
        ((32, 1, 5, 5), 0.05, 0.05),
        ((64, 32, 5, 5), 0.05, 0.05),
        ((1024, 3136), 0.05, 0.05),
        ((10, 1024), 0.05, 0.05),
    ],
    "mnist_mlp": [
        ((1000, 784), 0.03, 0.0),
        ((500, 1000), 0.03, 0.0),
        ((100, 500), 0.03, 0.0),
        ((10, 100), 0.03, 0.0),
    ],
    "fmnist_mlp50": [((50, 784), 784**-0.5, 0.0), ((10, 50), 50**-0.5, 0.0)],
    "uci_energy": [((50, 8), 8**-0.5, 0.0), ((1, 50), 50**-0.5, 0.0)],
    "uci_protein": [((100, 9), 9**-0.5, 0.0), ((1, 100), 100**-0.5, 0.0)],
}
WRN_164 = [
    (16, 3, 3, 3),
    *[(64, 16, 3, 3), (64, 64, 3, 3), (64, 16, 1, 1), (64, 64, 3, 3), (64, 64, 3, 3)],
    *[(128, 64, 3, 3), (128, 128, 3, 3), (128, 64, 1, 1), (128, 128, 3, 3), (128, 128, 3, 3)],
    *[(256, 128, 3, 3), (256, 256, 3, 3), (256, 128, 1, 1), (256, 256, 3, 3), (256, 256, 3, 3)],
    (10, 256),
]
TABLES["svhn_wrn164"] = [(shape, XAVIER_UNIFORM, 0.0 if len(shape) == 2 else None) for shape in WRN_164]


def expected_deviation(shape: tuple[int, ...], rule: str | float) -> float:
    if isinstance(rule, float):
        return rule * CUT
    field = math.prod(shape[2:])
    return math.sqrt(2 / ((shape[0] + shape[1]) * field))


@pytest.mark.parametrize("name", TABLES)
def test_shapes_and_first_values_of_each_layer(name):
    torch.manual_seed(0)
    model = problems.get(name).model()
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sorted(tuple(layer.weight.shape) for layer in layers) == sorted(shape for shape, _, _ in TABLES[name])
    if name != "svhn_wrn164":  # there the shortcut is built after the convolutions beside it
        assert [tuple(layer.weight.shape) for layer in layers] == [shape for shape, _, _ in TABLES[name]]
    rules = {shape: (rule, bias) for shape, rule, bias in TABLES[name]}
    for layer in layers:
        shape = tuple(layer.weight.shape)
        rule, bias = rules[shape]
        expected, count = expected_deviation(shape, rule), math.prod(shape)
        # five standard errors of a sample's standard deviation (normal: sigma / sqrt(2 n), a bound for the others) and
        # of its mean
        assert layer.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * count))
        assert abs(layer.weight.mean().item()) < 5 * expected / math.sqrt(count)
        largest = layer.weight.abs().max().item()
        if rule == XAVIER_UNIFORM:
            assert largest <= expected * math.sqrt(3) * (1 + 1e-6)
        elif isinstance(rule, float):
            assert largest <= 2 * rule * (1 + 1e-6)
        elif count > 10_000:
            assert largest > 3.5 * expected  # normal, not cut
        if bias is None:
            assert layer.bias is None
        else:
            assert layer.bias is not None
            assert torch.equal(layer.bias, torch.full_like(layer.bias, bias))


def test_batch_norm_of_wrn_164():
    norms = [m for m in problems.get("svhn_wrn164").model().modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.num_features for m in norms] == [16, 64, 64, 64, 64, 128, 128, 128, 128, 256, 256, 256, 256]
    assert {(m.momentum, m.eps) for m in norms} == {(0.9, 1e-5)}
    assert all(bool((m.weight == 1).all() and (m.bias == 0).all()) for m in norms)


@pytest.mark.parametrize(
    ("build", "parameters"),
    [(cnn_2c2d, 3_274_634), (deepobs_mlp, 1_336_610), (lambda: CharLSTM(83), 285_523), (resnet_20, 269_722)],
)
def test_published_sizes(build, parameters):
    assert sum(p.numel() for p in build().parameters()) == parameters


def test_resnet_18_has_the_size_of_the_well_known_one():
    # torchvision's resnet18 has 11,689,512 parameters with a thousand classes
    assert sum(p.numel() for p in resnet_18(1000).parameters()) == 11_689_512


def test_sizes_inside_the_residual_networks():
    for model, sides in (
        (resnet_20(), [32, 32, 32, 32, 16, 16, 16, 8, 8, 8]),
        (resnet_18(), [8, 8, 8, 4, 4, 2, 2, 1, 1]),
    ):
        found = []
        for module in model.modules():
            if type(module).__name__ in ("Block", "MaxPool2d") or (not found and isinstance(module, nn.ReLU)):
                found.append(module)
        seen: list[int] = []

        def see(_module, _inputs, output, seen=seen):
            seen.append(output.shape[-1])

        for module in found[0 if len(sides) == 10 else 1 :]:
            module.register_forward_hook(see)
        model(torch.rand(2, 3, 32, 32))
        assert seen == sides


L2 = {
    "cifar10_3c3d": (0.002, 6),
    "cifar100_allcnnc": (5e-4, 9),
    "svhn_wrn164": (5e-4, 17),
    "cifar10_resnet20": (1e-4, 20),
}


@pytest.mark.parametrize("name", L2)
def test_l2_term_is_on_weights_of_convolutions_and_dense_layers(name):
    problem = problems.get(name)
    assert isinstance(problem.weight_decay, tuple)
    decay, predicate = problem.weight_decay
    model = problem.model()
    chosen = [p for key, p in model.named_parameters() if predicate(key, p)]
    assert (decay, len(chosen)) == L2[name]
    assert {id(p) for p in chosen} == {id(m.weight) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def test_settings_of_table_1():
    rates = {"cifar10_3c3d": 0.06796578090758151, "cifar100_allcnnc": 0.17123375973, "svhn_wrn164": 0.025378155083}
    sizes = {"cifar10_3c3d": (128, 100), "cifar100_allcnnc": (256, 350), "svhn_wrn164": (128, 160)}
    for name, lr in rates.items():
        setting = problems.get(name).training
        assert (setting.lr, setting.optimizer, setting.momentum) == (lr, "sgd", 0.0)
        assert (setting.batch_size, setting.epochs) == sizes[name]


@DATA
@pytest.mark.parametrize(
    ("name", "expected"), [("cifar10_3c3d", 3.56), pytest.param("cifar100_allcnnc", 4.91, marks=pytest.mark.slow)]
)
def test_initial_loss(name, expected):
    """Mean over five initialisations on 500 images, L2 term included; within 2 % of the expected value."""
    problem = problems.get(name, rows=1000)
    batch = problem.batch(problem.load().train, slice(500))
    losses = []
    for seed in range(5):
        torch.manual_seed(seed)
        losses.append(float(problem.objective(problem.model().eval(), batch).value()))
    assert sum(losses) / 5 == pytest.approx(expected, rel=0.02)


SIZES = {
    "cifar100_allcnnc": ({}, (40_000, 10_000, 10_000), (3, 32, 32)),
    "cifar10_3c3d": ({"rows": 10_000}, (8_000, 2_000, 2_000), (3, 32, 32)),
    "cifar10_resnet18": ({"rows": 10_000}, (9_000, 1_000, 2_000), (3, 32, 32)),
    "mnist_mlp": ({}, (50_000, 10_000, 10_000), (1, 28, 28)),
    "fmnist_mlp50": ({"rows": 600}, (500, 100, 120), (784,)),
    "mnist_lstm": ({"rows": 600}, (500, 100, 120), (49, 1)),
    "uci_energy": ({}, (588, 104, 76), (8,)),
    "uci_protein": ({}, (34_983, 6_174, 4_573), (9,)),
    "shakespeare_lstm": ({}, (20_077, 1_115, 1_115), (50,)),
    "shakespeare_gpt": ({}, (15_685, 871, 871), (64,)),
    "mnist_autoencoder": ({"rows": 600}, (500, 100, 120), (784,)),
}


@DATA
@pytest.mark.parametrize("name", SIZES)
def test_splits(name):
    options, sizes, shape = SIZES[name]
    problem = problems.get(name, **options)
    splits = problem.load()
    parts = (splits.train, splits.valid, splits.test)
    assert tuple(len(part[1]) for part in parts) == sizes
    again = problem.load()
    for part, same in zip(parts, (again.train, again.valid, again.test), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part, same, strict=True))
        inputs, targets = problem.batch(part, slice(7))
        assert inputs.shape == (7, *shape)
        assert len(targets) == 7
        assert part[0].element_size() <= 4  # images are kept as bytes, nothing in double precision


@DATA
def test_normalised_data_has_mean_zero_and_deviation_one():
    problem = problems.get("cifar100_allcnnc", rows=20_000)
    inputs, _ = problem.batch(problem.load().train)
    assert inputs.mean(dim=(0, 2, 3)) == pytest.approx(torch.zeros(3), abs=0.02)  # statistics of all 50,000 images
    assert inputs.std(dim=(0, 2, 3)) == pytest.approx(torch.ones(3), abs=0.02)
    for name in ("uci_energy", "uci_protein", "fmnist_mlp50"):
        inputs, targets = problems.get(name).load().train
        assert inputs.double().mean(0) == pytest.approx(torch.zeros(inputs.shape[1]), abs=1e-5)  # float32
        deviation = inputs.double().std(0, correction=0)
        assert ((deviation - 1).abs() < 1e-5).logical_or(deviation == 0).all()
        if targets.is_floating_point():
            assert targets.double().std(0, correction=0).item() == pytest.approx(1, abs=1e-5)


@DATA
def test_text_is_shifted_by_one_symbol():
    symbols, following = problems.get("shakespeare_gpt").load().train
    assert torch.equal(symbols[:, 1:].long(), following[:, :-1])
    assert torch.equal(symbols[1:, 0].long(), following[:-1, -1])
    assert following.max() == 64
    assert following.min() == 0


@DATA
def test_rows_are_the_first_of_the_file():
    """A subset's images are those of the whole data set's first rows, with the same labels."""
    few, all_rows = (problems.get("mnist_mlp", rows=rows).load() for rows in (1000, None))
    labels = torch.cat([few.train[1], few.valid[1]]).bincount()
    published = data.mnist()
    assert torch.equal(labels, published.train_labels[:1000].bincount())
    assert len(all_rows.train[1]) == 50_000
    with pytest.raises(ValueError, match="rows must be from 10 to 60000"):
        problems.get("mnist_mlp", rows=60_001).load()


@DATA
def test_deepobs_train_evaluation():
    """10,000 augmented rows of training and validation split together, drawn anew by each generator."""
    problem = problems.get("cifar10_3c3d", rows=1000, train_evaluation="deepobs")
    assert problem.train_evaluation is not None
    splits = problem.load()
    first, again, other = (
        problem.train_evaluation(problem, splits, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert len(first[1]) == 1000  # all there are
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[1].bincount(), torch.cat([splits.train[1], splits.valid[1]]).bincount())
