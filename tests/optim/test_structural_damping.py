"""Structural damping (Martens and Sutskever 2011, Section 3) against dense Jacobians of the hidden units.

The oracle: C = G + lambda mu (1/rows) sum J_h' diag(phi'(h)) J_h, with J_h by torch.autograd.functional on the
pre-activations that the model returns; a loss that sums has no 1/rows.
"""

import copy
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from dense_models import cg, dense_model, flat, function_of_theta, reweighed, without_cross_blocks
from torch import nn

from flat_parts import parts
from latephase import GGN, HessianFree, Objective, WithHidden, layerwise
from latephase.curvature import linearize
from latephase.curvature.tracing import cache as traces

FUNCTIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu, "softplus": F.softplus}
SLOPES = {
    "tanh": lambda h: 1 - torch.tanh(h) ** 2,
    "sigmoid": lambda h: torch.sigmoid(h) * (1 - torch.sigmoid(h)),
    "relu": lambda h: (h > 0).to(h.dtype),
    "softplus": torch.sigmoid,
}
EXACT = {
    "stopping": "residual",
    "tolerance": 1e-13,
    "candidates": "last",
    "line_search": False,
    "fixed": True,
}
SOLVED = {"rtol": 1e-7, "atol": 1e-9}  # float64, condition numbers below 1e4, CG to 1e-13 of |b|


class Recurrent(nn.Module):
    """Three hidden units over time; 2 inputs per time step, 3 outputs: 29 parameters."""

    def __init__(self, nonlinearity="tanh", form="tensor", seed=0):
        super().__init__()
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        self.input, self.hidden, self.output = nn.Linear(2, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.double()
        torch.set_rng_state(state)
        self.nonlinearity, self.form = nonlinearity, form

    def forward(self, sequences):
        state, hidden = sequences.new_zeros(len(sequences), 3), []
        for inputs in sequences.unbind(dim=1):
            h = self.input(inputs) + self.hidden(state)
            hidden.append(h)
            state = FUNCTIONS[self.nonlinearity](h)
        outputs = self.output(state)
        if self.form == "none":
            return outputs
        stacked = torch.stack(hidden, dim=1) if self.form == "tensor" else tuple(hidden)
        return WithHidden(outputs, stacked, self.nonlinearity)


P, GROUPS = 30, [9, 9, 12]


def sequences(rows=12, time=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, time, 2, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (rows,), generator=generator)


def structural(model, inputs, reduction="mean"):
    """S = (1/rows) sum J_h' diag(phi'(h)) J_h, dense; without 1/rows for a sum."""
    forward, theta = function_of_theta(model, inputs), flat(model)

    def hidden(theta):
        h = forward(theta).pre_activations
        return torch.cat([part.reshape(-1) for part in h]) if isinstance(h, tuple) else h.reshape(-1)

    jacobian = torch.autograd.functional.jacobian(hidden, theta)
    slopes = SLOPES[model.nonlinearity](hidden(theta))
    return jacobian.T @ (slopes[:, None] * jacobian) / (len(inputs) if reduction == "mean" else 1)


def step_of(model, optimizer, *objectives, **others):
    before = flat(model)
    optimizer.step(*objectives, **others)
    return flat(model) - before


def optimizer_of(network, damping=0.2, mu=3.0, groups=None, **options):
    parameters = network.parameters() if groups is None else groups
    return HessianFree(parameters, **parts(damping=damping, structural_damping=mu, **(EXACT | options)))


@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid", "relu", "softplus"])
@pytest.mark.parametrize("form", ["tensor", "tuple"])
@pytest.mark.parametrize("chunks", [None, 5])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_step_is_the_dense_one(nonlinearity, form, chunks, reduction):
    model, data = Recurrent(nonlinearity, form), sequences()
    loss = nn.CrossEntropyLoss(reduction=reduction)
    oracle, extra = dense_model(model, loss, data), 0.2 * 3.0 * structural(model, data[0], reduction)
    expected = torch.linalg.solve(oracle.matrix + extra + 0.2 * torch.eye(P), -oracle.gradient)
    plain = torch.linalg.solve(oracle.matrix + 0.2 * torch.eye(P), -oracle.gradient)
    assert (expected - plain).norm() > 0.1 * plain.norm(), "the term is to make a difference"
    optimizer = optimizer_of(model)
    step = step_of(model, optimizer, Objective(model, loss, data, microbatch_size=chunks))
    torch.testing.assert_close(step, expected, **SOLVED)
    report = optimizer.report
    # It is curvature in the reduction ratio too; loss and gradient know nothing of it.
    assert report.predicted_change == pytest.approx(oracle.change(expected, oracle.matrix + extra), rel=1e-7)
    assert report.loss == pytest.approx(oracle.loss, rel=1e-12)
    assert report.gradient_norm == pytest.approx(float(oracle.gradient.norm()), rel=1e-12)
    assert report.new_loss == pytest.approx(dense_model(model, loss, data).loss, rel=1e-12)
    change = report.new_loss - report.loss
    assert report.reduction_ratio == pytest.approx(change / report.predicted_change, rel=1e-9)


@pytest.mark.parametrize("form", ["tensor", "tuple"])
@pytest.mark.parametrize("chunks", [None, 5])
@pytest.mark.parametrize("damping", [0.3, 1.5])
def test_with_the_hessian(form, chunks, damping):
    model, data = Recurrent("tanh", form), sequences()
    oracle = dense_model(model, F.cross_entropy, data, "hessian")
    curved = oracle.matrix + 2.0 * damping * structural(model, data[0])
    matrix = curved + damping * torch.eye(P)
    assert torch.linalg.eigvalsh(matrix)[0] > 0
    optimizer = optimizer_of(model, damping, 2.0, curvature="hessian")
    step = step_of(model, optimizer, Objective(model, nn.CrossEntropyLoss(), data, microbatch_size=chunks))
    expected = torch.linalg.solve(matrix, -oracle.gradient)
    torch.testing.assert_close(step, expected, **SOLVED)
    assert optimizer.report.predicted_change == pytest.approx(oracle.change(expected, curved), rel=1e-7)


def test_squared_error_with_weight_decay():
    """The mean over elements divides by rows and outputs, the structural term by rows alone."""
    model, (inputs, _) = Recurrent(), sequences()
    targets = torch.randn(12, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    oracle = dense_model(model, F.mse_loss, (inputs, targets), weight_decay=0.1)
    matrix = oracle.matrix + 0.6 * structural(model, inputs) + 0.2 * torch.eye(P)
    for chunks in (None, 5):
        twin = copy.deepcopy(model)
        objective = Objective(twin, nn.MSELoss(), (inputs, targets), microbatch_size=chunks, weight_decay=0.1)
        step = step_of(twin, optimizer_of(twin), objective)
        torch.testing.assert_close(step, torch.linalg.solve(matrix, -oracle.gradient), **SOLVED)


@pytest.mark.parametrize("chunks", [None, 5, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_count_alike_whatever_their_weight_in_the_loss(chunks, weighted):
    """Class weights and targets that do not count are the loss's business: hidden units are held at every row."""
    model, (inputs, targets) = Recurrent(), sequences()
    targets[5:10] = -100  # in chunks of five a whole one does not count
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64) if weighted else None)
    oracle = dense_model(model, loss, (inputs, targets))
    matrix = oracle.matrix + 0.6 * structural(model, inputs) + 0.2 * torch.eye(P)
    step = step_of(model, optimizer_of(model), Objective(model, loss, (inputs, targets), microbatch_size=chunks))
    torch.testing.assert_close(step, torch.linalg.solve(matrix, -oracle.gradient), **SOLVED)


def test_sequences_of_different_lengths():
    """Chunks of other lengths have more hidden units per row; all of them are held."""
    model, short, long = Recurrent(), sequences(5, 3, seed=1), sequences(9, 6, seed=2)
    parts = [dense_model(model, F.cross_entropy, data) for data in (short, long)]
    gradient = (5 * parts[0].gradient + 9 * parts[1].gradient) / 14
    matrix = sum(
        rows / 14 * (part.matrix + 0.6 * structural(model, data[0]))
        for rows, part, data in zip((5, 9), parts, (short, long), strict=True)
    )
    step = step_of(model, optimizer_of(model), Objective(model, nn.CrossEntropyLoss(), [short, long]))
    torch.testing.assert_close(step, torch.linalg.solve(matrix + 0.2 * torch.eye(P), -gradient), **SOLVED)


def test_the_curvature_objective_gives_the_term():
    model, data, other = Recurrent(), sequences(), sequences(7, seed=3)
    gradient, curved = (dense_model(model, F.cross_entropy, part) for part in (data, other))
    matrix = curved.matrix + 0.6 * structural(model, other[0]) + 0.2 * torch.eye(P)
    objectives = [Objective(model, nn.CrossEntropyLoss(), part) for part in (data, other)]
    step = step_of(model, optimizer_of(model), objectives[0], curvature_objective=objectives[1])
    torch.testing.assert_close(step, torch.linalg.solve(matrix, -gradient.gradient), **SOLVED)


def test_blocks_and_scales():
    """The term has no cross blocks then; a group's scale is on its lambda I, and mu is lambda's whole."""
    model, data = Recurrent(), sequences()
    groups = layerwise(model)
    assert [sum(p.numel() for p in group["params"]) for group in groups] == GROUPS
    scales = torch.tensor([1.0] * 9 + [0.5] * 9 + [2.0] * 12, dtype=torch.float64)
    for group, scale in zip(groups, (1.0, 0.5, 2.0), strict=True):
        group["damping_scale"] = scale
    oracle = dense_model(model, F.cross_entropy, data)
    curved = without_cross_blocks(oracle.matrix + 0.6 * structural(model, data[0]), GROUPS)
    optimizer = optimizer_of(model, groups=groups, blocks=True)
    step = step_of(model, optimizer, Objective(model, nn.CrossEntropyLoss(), data))
    expected = torch.linalg.solve(curved + 0.2 * torch.diag(scales), -oracle.gradient)
    torch.testing.assert_close(step, expected, **SOLVED)
    assert optimizer.report.predicted_change == pytest.approx(oracle.change(expected, curved), rel=1e-7)


def test_with_debias_each_model_has_the_term_of_its_own_data():
    model, data, other = Recurrent(), sequences(), sequences(9, seed=3)
    first, second = (dense_model(model, F.cross_entropy, part) for part in (data, other))
    one, two = (part.matrix + 0.6 * structural(model, batch[0]) for part, batch in ((first, data), (second, other)))
    eye = 0.2 * torch.eye(P)
    iterates = cg(one + eye, -first.gradient, 5)
    directions = [after - before for before, after in pairwise(iterates)]
    expected = reweighed(two + eye, -second.gradient, directions, [P])[-1]
    optimizer = optimizer_of(model, debias=True, max_iter=5)
    objectives = [Objective(model, nn.CrossEntropyLoss(), part) for part in (data, other)]
    step = step_of(model, optimizer, *objectives)
    torch.testing.assert_close(step, expected, **SOLVED)
    assert optimizer.report.predicted_change == pytest.approx(second.change(expected, two), rel=1e-7)


@pytest.mark.parametrize("kind", ["undamped", "damped"])
def test_the_reduction_ratio(kind):
    model, data = Recurrent(), sequences()
    oracle, extra = dense_model(model, F.cross_entropy, data), 0.6 * structural(model, data[0])
    optimizer = optimizer_of(model, model=kind)
    step = step_of(model, optimizer, Objective(model, nn.CrossEntropyLoss(), data))
    matrix = oracle.matrix + extra + (0.2 * torch.eye(P) if kind == "damped" else 0.0)
    assert optimizer.report.predicted_change == pytest.approx(oracle.change(step, matrix), rel=1e-7)


def test_the_term_follows_the_damping():
    """mu is a factor on lambda: with an adapted damping the term moves along, and without damping there is none."""
    model, data = Recurrent(), sequences()
    optimizer = optimizer_of(model, damping=1.0, fixed=False, warm_start=0.0)
    used = []
    for _ in range(4):
        oracle, damping = dense_model(model, F.cross_entropy, data), optimizer.damping
        matrix = oracle.matrix + 3.0 * damping * structural(model, data[0]) + damping * torch.eye(P)
        step = step_of(model, optimizer, Objective(model, nn.CrossEntropyLoss(), data))
        torch.testing.assert_close(step, torch.linalg.solve(matrix, -oracle.gradient), **SOLVED)
        used.append(damping)
    assert len(set(used)) == 4
    models = [Recurrent(), Recurrent()]
    for model, mu in zip(models, (3.0, 0.0), strict=True):
        optimizer = optimizer_of(model, 0.0, mu, max_iter=5)
        optimizer.step(Objective(model, nn.CrossEntropyLoss(), data))
    torch.testing.assert_close(flat(models[0]), flat(models[1]), rtol=1e-9, atol=1e-12)


def test_everything_else_ignores_the_pre_activations(gradient_of):
    """Value, closure, linearisation and plain steps are those of the model that returns its outputs alone."""
    data, models = sequences(), [Recurrent(form=form) for form in ("tensor", "tuple", "none")]
    objectives = [Objective(model, nn.CrossEntropyLoss(), data, microbatch_size=5) for model in models]
    reference, v = objectives[-1], torch.randn(P, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = linearize(reference).matvec(v)
    reference()
    optimizers = [HessianFree(model.parameters(), damping=0.1) for model in models]
    for model, objective, optimizer in zip(models, objectives, optimizers, strict=True):
        assert torch.equal(objective.value(), reference.value())
        objective()
        assert torch.equal(gradient_of(model), gradient_of(models[-1]))
        torch.testing.assert_close(linearize(objective).matvec(v), product, rtol=1e-12, atol=1e-14)
        for _ in range(3):
            optimizer.step(objective)
    for model in models[:2]:
        torch.testing.assert_close(flat(model), flat(models[-1]), rtol=1e-9, atol=1e-12)
    torch.optim.SGD(models[0].parameters(), lr=0.1).step(objectives[0])


def test_forward_may_return_them():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Recurrent()

        def forward(self, inputs):
            return self.inner(inputs).outputs

    data, model = sequences(), Plain()
    objective = Objective(model, nn.CrossEntropyLoss(), data, forward=lambda model, inputs: model.inner(inputs))
    twin = Recurrent()
    expected = step_of(twin, optimizer_of(twin), Objective(twin, nn.CrossEntropyLoss(), data))
    torch.testing.assert_close(step_of(model, optimizer_of(model), objective), expected, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# What cannot work says what to do


@pytest.mark.parametrize("begun", [False, True])
def test_a_model_without_hidden_units_is_told_how(begun, unchanged):
    model, data = Recurrent(form="none"), sequences()
    optimizer = HessianFree(model.parameters())
    if begun:
        for _ in range(3):
            optimizer.step(Objective(model, nn.CrossEntropyLoss(), data))
    optimizer.param_groups[0]["curvature"] = GGN(structural_damping=0.1)
    with unchanged(model), pytest.raises(ValueError, match="WithHidden"):
        optimizer.step(Objective(model, nn.CrossEntropyLoss(), data))


@pytest.mark.parametrize("begun", [False, True])
def test_an_unknown_nonlinearity_is_named(begun, unchanged):
    model, data = Recurrent(), sequences()
    optimizer = optimizer_of(model)
    objective = Objective(model, nn.CrossEntropyLoss(), data)
    if begun:
        for _ in range(3):
            optimizer.step(objective)
    forward = model.forward
    model.forward = lambda inputs: forward(inputs)._replace(nonlinearity="gelu")
    with unchanged(model), pytest.raises(ValueError, match=r"(?s)(gelu.*tanh|tanh.*gelu)"):
        optimizer.step(objective)


def test_from_forward_is_refused(unchanged):
    model, (inputs, targets) = Recurrent(), sequences()

    def forward():
        outputs = model(inputs).outputs
        return F.cross_entropy(outputs, targets), outputs

    optimizer = optimizer_of(model)
    with unchanged(model, optimizer), pytest.raises(ValueError, match=r"(?s)from_forward.*Objective\("):
        optimizer.step(Objective.from_forward(model, forward))


# ---------------------------------------------------------------------------------------------------------------------
# One trace for every damping


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("chunks", [None, 4])
def test_one_trace_serves_every_damping(curvature, chunks):
    """From the second step on products are traced, by the same trace at every damping, and the steps are right."""
    model, data, dampings, kept = Recurrent(), sequences(), set(), set()
    options = {"damping": 1.0, "curvature": curvature, "max_iter": 6, "structural_damping": 0.5}
    optimizer = HessianFree(model.parameters(), **parts(**options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(8):
            twin, other = copy.deepcopy((model, optimizer))
            twin.register_forward_pre_hook(lambda _, args: float(args[0].sum()) and None)  # no trace can repeat this
            optimizer.step(Objective(model, nn.CrossEntropyLoss(), data, microbatch_size=chunks))
            other.step(Objective(twin, nn.CrossEntropyLoss(), data, microbatch_size=chunks))
            assert other.report.method != "traced"
            torch.testing.assert_close(flat(model), flat(twin), rtol=1e-9, atol=1e-11)
            dampings.add(optimizer.report.damping)
            if step:
                assert optimizer.report.method == "traced"
                kept.add(tuple(id(entry) for entry in traces._entries[model].values()))
    assert len(dampings) > 3
    assert len(kept) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mu", [0.0, 1 / 30, 1.0])
def test_a_recurrent_network_learns_with_it(mu):
    """Sums of two marked numbers of ten, squared error below a fifth of the variance that guessing leaves (1/6)."""
    torch.manual_seed(0)
    numbers, marks = torch.rand(300, 10).double(), torch.zeros(300, 10).double()
    marks[:, 1] = marks[:, 6] = 1.0
    sums = (numbers * marks).sum(dim=1, keepdim=True).expand(-1, 3).contiguous()
    model = Recurrent()
    objective = Objective(model, nn.MSELoss(), (torch.stack([numbers, marks], dim=2), sums))
    optimizer = HessianFree(model.parameters(), damping=0.1, curvature=GGN(structural_damping=mu))
    for _ in range(40):
        optimizer.step(objective)
        assert optimizer.report.new_loss <= optimizer.report.loss
    assert optimizer.report.new_loss < 1 / 30


@pytest.mark.parametrize("spoil", [lambda h: h.transpose(0, 1), lambda h: (), lambda h: h[0, 0, 0], lambda h: "tanh"])
def test_pre_activations_of_another_form_are_named(spoil):
    class Spoiled(Recurrent):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            return outputs._replace(pre_activations=spoil(outputs.pre_activations))

    model = Spoiled()
    with pytest.raises(ValueError, match=r"pre_activations of WithHidden must be a tensor \[rows, \.\.\.\]"):
        optimizer_of(model).step(Objective(model, nn.CrossEntropyLoss(), sequences()))
