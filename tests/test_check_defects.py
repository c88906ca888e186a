"""`check` on problems with a defect made on purpose: each is found, named, and said to be what it is."""

import itertools
import random
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latephase import Objective, check


def batch(rows: int = 48):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 6, generator=generator), torch.randint(3, (rows,), generator=generator)


def mlp(*between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), *(between or (nn.Tanh(),)), nn.Linear(12, 3))


def defects(report) -> list[str]:
    return [finding.name for finding in report.of_severity("defect")]


COUNTER = itertools.count()
NOISES = {
    "NumPy": lambda: np.random.rand(),  # noqa: NPY002
    "Python's random": lambda: random.random(),
    "a clock": lambda: 50 * time.perf_counter() % 1,
    "a counter": lambda: 0.01 * next(COUNTER),
}


@pytest.mark.parametrize("source", NOISES)
def test_a_loss_that_is_another_one_the_next_time(source, unchanged):
    def noisy(outputs, targets):
        return F.cross_entropy(outputs, targets) * (1 + 0.1 * NOISES[source]())

    model = mlp()
    with unchanged(model, generator=True):
        report = check(model, noisy, batch())
    assert defects(report) == ["determinism"]
    message = report.finding("determinism").message
    assert source in message
    assert "What changes is the loss function noisy" in message
    assert report.method is None
    assert str(report).splitlines()[-1] == "Not ready for second-order steps: 1 defect (determinism)."


def test_a_model_that_is_another_one_the_next_time():
    class Growing(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * (1 + 0.01 * self.calls)

    report = check(mlp(Growing()), nn.CrossEntropyLoss(), batch())
    assert defects(report) == ["determinism"]
    assert "the output of Sequential" in report.finding("determinism").message


class Declared(nn.Module):
    def __init__(self, declared, function):
        super().__init__()
        self.function = function
        if declared is not None:
            self.reduction = declared

    def forward(self, outputs, targets):
        return self.function(outputs, targets)


def summed(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="sum")


def of_counted(outputs, targets):
    return F.cross_entropy(outputs, targets, ignore_index=0)


@pytest.mark.parametrize(
    ("declared", "function", "severity", "value"),
    [
        ("mean", F.cross_entropy, "ok", "mean"),
        ("sum", summed, "ok", "sum"),
        ("mean", summed, "defect", "sum"),
        ("sum", F.cross_entropy, "defect", "mean"),
        ("mean", of_counted, "defect", None),
        (None, summed, "note", "sum"),
        (None, F.cross_entropy, "note", "mean"),
        (None, of_counted, "note", None),
    ],
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_reduction_that_is_not_what_it_says(declared, function, severity, value, mode):
    # In training mode batch statistics and dropout differ between parts of a batch, which must not be laid to the loss.
    model = mlp(nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.4)).train(mode == "train")
    found = check(model, Declared(declared, function), batch()).finding("reduction")
    assert (found.severity, found.value) == (severity, value)
    assert value is None or severity == "ok" or f"loss.reduction = '{value}'" in found.message


def test_several_chunks_without_a_reduction():
    objective = Objective(
        mlp(), lambda outputs, targets: F.cross_entropy(outputs, targets), batch(), microbatch_size=20
    )
    report = check(objective)
    assert defects(report) == ["chunks"]
    assert "reduction" in report.finding("chunks").message


def test_examples_that_depend_on_each_other():
    class Contrast(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    report = check(mlp(Contrast()), nn.CrossEntropyLoss(), batch())
    assert report.ok
    assert report.finding("rows").severity == "warning"
    assert report.finding("reduction").severity == "ok"


def test_weights_reached_by_another_way():
    class Copied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.kept = [self.layer.weight]

        def forward(self, x):
            return self.layer(x) + F.linear(x, self.kept[0])

    report = check(Copied(), nn.CrossEntropyLoss(), batch())
    assert "gradient" in defects(report)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_is_not_finite(value):
    inputs, targets = batch()
    inputs[7, 2] = value
    report = check(mlp(), nn.CrossEntropyLoss(), (inputs, targets))
    # The tangent of infinity is finite, but its slope times infinity is not.
    assert defects(report) == ["data", "loss" if value != value else "gradient"]
    assert "row 7" in report.finding("data").message
    assert value == value or "see data" in report.finding("loss").message


def test_parameters_and_gradients_that_are_not_finite():
    model = mlp()
    with torch.no_grad():
        model[2].bias[0] = float("nan")
    report = check(model, nn.CrossEntropyLoss(), batch())
    assert defects(report) == ["loss"]
    assert "2.bias" in report.finding("loss").message
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    report = check(model, lambda outputs, targets: outputs.square().sum(1).sqrt().mean(), batch())
    assert defects(report) == ["gradient"]


def test_a_layer_that_cannot_be_differentiated_is_named():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.out = nn.EmbeddingBag(20, 4, mode="max"), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.bag(x))

    report = check(Bag(), nn.CrossEntropyLoss(), (torch.randint(20, (16, 4)), torch.randint(3, (16,))))
    assert defects(report) == ["products"]
    assert "'bag' (EmbeddingBag)" in report.finding("products").message


@pytest.mark.parametrize(
    ("model", "loss", "name", "words"),
    [
        (nn.Linear(7, 3), nn.CrossEntropyLoss(), "loss", "shapes cannot be multiplied"),
        (nn.Linear(6, 3), nn.CrossEntropyLoss(reduction="none"), "loss", "must be a scalar"),
        (nn.Linear(6, 3).requires_grad_(False), nn.CrossEntropyLoss(), "parameters", "requires a gradient"),
        (nn.Linear(6, 3), lambda outputs, targets: outputs.detach().sum(), "unused", "2 of 2 tensors"),
    ],
)
def test_a_model_or_loss_that_does_not_run(model, loss, name, words):
    report = check(model, loss, batch())
    assert defects(report) == [name]
    assert words in report.finding(name).message


def brier(outputs, targets):
    """Squared error of probabilities: not convex in the logits."""
    return (outputs.softmax(1) - F.one_hot(targets, 3)).square().mean()


def test_a_loss_that_is_not_convex_in_the_outputs():
    found = check(mlp(), brier, batch()).finding("definiteness")
    assert found.severity == "warning"
    assert found.message.startswith("Brier is not convex in the outputs")
    assert 'nonpositive_curvature="absolute"' in found.message


def test_a_loss_that_is_linear_in_the_outputs():
    model = nn.Sequential(mlp(), nn.LogSoftmax(1))
    found = check(model, nn.NLLLoss(), batch()).finding("definiteness")
    assert found.severity == "warning"
    assert "CrossEntropyLoss" in found.message


def test_one_example_cannot_be_parted():
    inputs, targets = batch()
    report = check(mlp(), nn.CrossEntropyLoss(), (inputs[:1], targets[:1]))
    assert report.ok, str(report)
    assert report.finding("reduction").severity == "note"


def test_warnings_of_the_model_are_passed_on():
    class Old(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            import warnings

            warnings.warn("this layer is old", stacklevel=1)
            return x

    assert check(mlp(Old()), nn.CrossEntropyLoss(), batch()).finding("warnings").value == ("this layer is old",)
