"""`check` on problems without a defect: what it says of them, its numbers, and that it leaves all as it was."""

import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase
from latephase import Objective, check
from latephase.curvature import dense, linearize
from latephase.diagnosis import cost
from latephase.objective.memory import peak_bytes
from latephase.objective.microbatch import STEP_FACTOR


class LastState(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


def batch(rows: int = 40):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 6, generator=generator), torch.randint(3, (rows,), generator=generator)


def cnn() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(36, 3))


def transformer() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
    return nn.Sequential(nn.Embedding(11, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))


def pictures():
    return torch.randn(24, 1, 8, 8), torch.randint(3, (24,))


def sequences():
    return torch.randn(20, 7, 5), torch.randint(2, (20,))


def tokens():
    return torch.randint(11, (12, 6)), torch.randn(12, 6, 8)


CASES = {
    "mlp": (mlp, nn.CrossEntropyLoss, batch),
    "cnn": (cnn, nn.CrossEntropyLoss, pictures),
    "lstm": (LastState, nn.CrossEntropyLoss, sequences),
    "transformer": (transformer, nn.MSELoss, tokens),
}


@pytest.mark.parametrize("case", CASES)
def test_a_healthy_problem_has_no_defect_and_stays_as_it_was(case, unchanged):
    make, loss, data = CASES[case]
    model, examples = make(), data()
    with unchanged(model, generator=True):
        report = check(model, loss(), examples)
    assert report.ok, str(report)
    assert not report.of_severity("warning"), str(report)
    assert report.parameters == sum(p.numel() for p in model.parameters())
    assert (report.first_method, report.method, report.hessian_method) == ("double_backward", "traced", "traced")
    for name in ("gradient", "slope", "reduction", "agreement", "symmetry", "definiteness", "hessian", "time"):
        assert report.finding(name).severity == "ok", str(report)
    mode = report.finding("mode")
    assert mode.severity == ("note" if case == "cnn" else "ok")
    assert case != "cnn" or ("model.eval()" in mode.message and mode.value == {"batch_norm": ["1"], "random": True})


def test_gradients_other_generators_and_traces_stay_too():
    model, (inputs, targets) = cnn(), pictures()
    F.cross_entropy(model(inputs), targets).backward()
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters()]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002

    def drawing(outputs, targets):
        return F.cross_entropy(outputs, targets) + 0 * (random.random() + np.random.rand())  # noqa: NPY002

    check(model, drawing, (inputs, targets))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1][1])  # noqa: NPY002
    for p, (gradient, values) in zip(model.parameters(), gradients, strict=True):
        assert p.grad is gradient
        assert torch.equal(gradient, values)
    # The step after a check is the one that it would have been: nothing is traced before its second time.
    curved = linearize(Objective(model, nn.CrossEntropyLoss(), (inputs, targets)))
    assert curved.reason == "seen for the first time"


def test_numbers_are_those_of_the_problem():
    """In float64: loss and gradient by plain autograd, the spectrum by the dense matrix, memory by its own measure."""
    model, (inputs, targets) = mlp().double(), batch()
    inputs, loss = inputs.double(), nn.CrossEntropyLoss()
    report = check(model, loss, (inputs, targets), weight_decay=0.1)
    parameters = list(model.parameters())
    value = loss(model(inputs), targets) + 0.05 * sum(p.square().sum() for p in parameters)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)])
    assert report.loss == pytest.approx(value.item(), rel=1e-12)  # rounding of float64
    assert report.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-10)
    curved = linearize(Objective(model, loss, (inputs, targets), weight_decay=0.1))
    largest = float(torch.linalg.eigvalsh(dense(curved.matvec, curved.space.size))[-1])
    assert 0.8 * largest < report.largest_curvature <= largest * (1 + 1e-12)  # a Ritz value is never above
    measured = peak_bytes(lambda: torch.autograd.grad(loss(model(inputs), targets), parameters), inputs.device)
    assert report.gradient_bytes == pytest.approx(measured, rel=0.3)  # beside it the L2 term and one more loss
    assert report.gradient_bytes < report.step_bytes
    assert 0 < report.seconds_per_product < report.seconds_per_step
    assert 0 < report.seconds_per_gradient < report.seconds_per_step
    assert report.suggested_microbatch_size == 40


def test_a_batch_that_does_not_fit_is_checked_in_chunks_that_do(monkeypatch):
    model, data = mlp(), batch(400)
    needed = peak_bytes(lambda: F.cross_entropy(model(data[0]), data[1]).backward(), data[0].device)
    monkeypatch.setattr(cost, "available", lambda device: STEP_FACTOR * needed)  # a half of it is for a step
    report = check(model, nn.CrossEntropyLoss(), data)
    assert report.ok, str(report)
    assert 100 < report.suggested_microbatch_size < 300
    assert report.finding("chunk size").severity == "warning"
    assert f"microbatch_size={report.suggested_microbatch_size}" in report.finding("chunk size").message
    assert report.loss == pytest.approx(F.cross_entropy(model(data[0]), data[1]).item(), rel=1e-5)  # float32
    halves = check(model, nn.CrossEntropyLoss(), data, microbatch_size=100)
    assert halves.finding("chunk size").severity == "ok"
    assert "400 examples in 4 chunks" in halves.finding("data").message


def test_batch_norm_over_chunks_is_warned_of():
    report = check(cnn(), nn.CrossEntropyLoss(), pictures(), microbatch_size=12)
    assert report.ok
    assert report.finding("mode").severity == "warning"
    assert "over 2 chunks" in report.finding("mode").message


def test_an_objective_is_checked_as_it_is():
    model, (inputs, targets) = mlp(), batch()
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, targets), microbatch_size=15)
    before = dict(vars(objective))
    report = check(objective)
    assert report.ok
    assert vars(objective) == before

    def forward():
        outputs = model(inputs)
        return F.cross_entropy(outputs, targets), outputs

    free = check(Objective.from_forward(model, forward))
    assert free.ok, str(free)
    assert free.method == "double_backward"
    assert "from_forward" in free.finding("products").message
    assert free.finding("data") is None


def test_frozen_unused_and_untraced_are_said():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.frozen = (nn.Linear(6, 3) for _ in range(3))
            self.frozen.requires_grad_(False)

        def forward(self, x):
            outputs = self.used(x) + self.frozen(x)
            return outputs if outputs.sum().item() < 1e9 else 2 * outputs

    report = check(Parts(), nn.CrossEntropyLoss(), batch())
    assert report.ok
    assert report.parameters == 42
    assert report.finding("frozen").value == ("frozen.weight", "frozen.bias")
    assert report.finding("unused").value == ("unused.weight", "unused.bias")
    assert report.finding("unused").severity == "warning"
    assert (report.method, report.finding("products").severity) == ("double_backward", "note")
    assert "item()" in report.finding("products").message


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_wide_and_narrow_numbers_pass(dtype):
    inputs, targets = batch()
    report = check(mlp().to(dtype), nn.CrossEntropyLoss(), (inputs.to(dtype), targets))
    assert report.ok, str(report)
    assert str(dtype).removeprefix("torch.") in report.finding("parameters").message
    # Differences of a loss in bfloat16, with its two digits, tell nothing, and that is said.
    assert report.finding("slope").severity == ("ok" if dtype == torch.float64 else "note")


def test_with_hidden_units_for_structural_damping():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.inward, self.within, self.out = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            state, before = x.new_zeros(len(x), 6), []
            for time in range(x.shape[1]):
                before.append(self.inward(x[:, time]) + self.within(state))
                state = before[-1].tanh()
            return latephase.WithHidden(self.out(state), tuple(before))

    report = check(Recurrent(), nn.CrossEntropyLoss(), sequences())
    assert report.ok, str(report)
    assert not report.of_severity("warning", "note"), str(report)


def test_the_text_fits_a_terminal_and_ends_with_the_verdict():
    report = check(cnn(), nn.CrossEntropyLoss(), pictures())
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "Ready for second-order steps: no defect, 2 notes."
    assert repr(report) == str(report)
    names = [finding.name for finding in report.findings]
    assert len(names) == len(set(names))
    assert [line.split()[0] for line in lines if line[:1].strip()][:3] == [name.split()[0] for name in names[:3]]
    read = json.loads(json.dumps(report.as_dict()))
    assert read["ok"] is True
    assert read["seconds_per_step"] == report.seconds_per_step


@pytest.mark.parametrize(
    "arguments",
    [(mlp(),), (mlp(), nn.CrossEntropyLoss()), (Objective(mlp(), nn.MSELoss(), batch()), nn.MSELoss(), batch())],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(TypeError, match="check"):
        check(*arguments)


def test_residuals_that_are_nearly_zero_have_lost_digits_and_no_more():
    """An equation that is solved: its loss depends on the order of sums, which is no fault of its rows."""

    def equation(model, t):
        t.requires_grad_(True)
        u = model(t)
        (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        return slope + 2 * u - torch.sin(5 * t)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    terms = {
        "equation": (equation, torch.linspace(0, 3, 80).double()[:, None]),
        "start": (lambda m, t: m(t) - 1, torch.zeros(1, 1).double()),
    }
    objective = Objective.from_residuals(model, terms, weights={"start": 10.0})
    optimizer = latephase.GaussNewton(model.parameters())
    for _ in range(100):
        optimizer.step(objective)
    assert optimizer.report.new_loss < 1e-7
    report = check(objective)
    assert not report.of_severity("warning", "defect"), report
