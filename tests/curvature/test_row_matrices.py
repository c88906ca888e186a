"""Rows J~ of an objective: J~'J~ is the dense Gauss-Newton matrix, in float64."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dense_oracle import columns, dense_oracle, relative
from product_cases import CASES, REALS, VECTORS, mlp, oracle, randn, seeded
from row_cases import TIGHT, Centred, Minus, check, gram
from torch import nn

from exact import bits
from latephase import Objective
from latephase.curvature import linearize

WITHOUT = ("lambda_coupling_rows", "lambda_linear")
ROOTED = [name for name in CASES if name not in WITHOUT]
ROWS = len(VECTORS)
HARDER: dict[str, Any] = {
    "huber": (nn.HuberLoss(delta=0.5), REALS),
    "huber_sum": (nn.HuberLoss(delta=0.5, reduction="sum"), REALS),
    "poisson": (nn.PoissonNLLLoss(), REALS.abs()),
    "gaussian": (functools.partial(F.gaussian_nll_loss, var=torch.full_like(REALS, 0.3)), REALS),
    "soft_margin": (nn.SoftMarginLoss(), REALS.sign()),
    "weighed_squares": (functools.partial(F.mse_loss, weight=REALS.abs()), REALS),
    "batchmean": (nn.KLDivLoss(reduction="batchmean"), torch.softmax(REALS, 1)),
}


def objective_of(name: str, chunked: bool = False, **options: Any) -> Objective:
    case = CASES[name]
    data = case.chunks() if chunked else (case.inputs, case.targets)
    return Objective(case.model(), case.loss, data, **case.options(), **options)


@pytest.mark.filterwarnings("ignore:rows of")
@pytest.mark.parametrize("name", ROOTED)
def test_the_square_is_the_dense_matrix(name):
    ggn = oracle(name).ggn
    check(objective_of(name), ggn)
    if CASES[name].chunked:
        check(objective_of(name, chunked=True), ggn)
        check(objective_of(name, microbatch_size=3, memory_limit=2_000), ggn)


@pytest.mark.parametrize("name", HARDER)
def test_further_losses(name):
    loss, targets = HARDER[name]
    objective = Objective(seeded(mlp), loss, (VECTORS, targets))
    curved = linearize(objective)
    size = curved.space.size
    if name == "batchmean":  # linear in the outputs
        with pytest.raises(ValueError, match="no root of the Hessian of KLDivLoss"):
            curved.rows()
        return
    check(objective, columns(curved.matvec, size))
    check(objective, dense_oracle(seeded(mlp), loss, VECTORS, targets).ggn)


def test_rows_stand_in_the_order_of_examples_and_outputs():
    """Of half a sum of squares the rows are the outputs' gradients themselves."""
    model, loss = seeded(mlp), nn.MSELoss(reduction="sum")
    jacobian = torch.autograd.functional.jacobian(
        lambda *p: torch.func.functional_call(
            model, dict(zip(dict(model.named_parameters()), p, strict=True)), VECTORS
        ),
        tuple(p.detach() for p in model.parameters()),
    )
    expected = torch.cat([each.reshape(ROWS * 3, -1) for each in jacobian], dim=1)
    for data, size in (((VECTORS, REALS), None), ([(VECTORS[:5], REALS[:5]), (VECTORS[5:], REALS[5:])], 4)):
        rows = linearize(Objective(model, loss, data, microbatch_size=size)).rows()
        torch.testing.assert_close(rows, 2**0.5 * expected, rtol=1e-12, atol=1e-14)


def test_the_gradient_of_squares_is_rows_times_residuals():
    """f = |r|^2 with r the scaled residuals: the gradient is sqrt(2) J~'r, chunk by chunk as weighed."""
    objective = Objective(seeded(mlp), nn.MSELoss(), (VECTORS, REALS), microbatch_size=4)

    def residuals(chunk, index):
        scale = (objective.weights[index] / chunk.targets.numel()) ** 0.5
        return (((objective.model(chunk.inputs) - chunk.targets) * scale).reshape(-1),)

    (r,) = objective.rows(residuals)
    curved = linearize(objective)
    torch.testing.assert_close(r @ r, curved.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(2**0.5 * curved.rows().T @ r, curved.gradient, rtol=1e-11, atol=1e-13)


def test_the_l2_term_is_not_in_the_rows():
    objective = objective_of("squared_error", weight_decay=0.3)
    curved = linearize(objective)
    decayed = gram(curved.rows()) + 0.3 * torch.eye(curved.space.size, dtype=torch.float64)
    assert relative(decayed, columns(curved.matvec, curved.space.size)) < TIGHT


def test_a_part_of_the_parameters_in_another_order():
    objective = objective_of("cross_entropy")
    some = list(objective.model.parameters())[:0:-1]
    curved = linearize(objective, parameters=some)
    assert relative(gram(curved.rows()), columns(curved.matvec, curved.space.size)) < TIGHT


def test_a_chunk_none_of_whose_targets_count_has_rows_of_zeros():
    case = CASES["cross_entropy"]
    targets = torch.where(torch.arange(ROWS) < 4, -100, case.targets)
    objective = Objective(case.model(), case.loss, (case.inputs, targets), microbatch_size=2)
    rows = linearize(objective).rows()
    assert not rows[:12].any()
    assert relative(gram(rows), dense_oracle(case.model(), case.loss, case.inputs, targets).ggn) < TIGHT


class TwoHeads(nn.Module):
    """Mean and variance of a Gaussian."""

    def __init__(self):
        super().__init__()
        self.mean, self.spread = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.mean(x), F.softplus(self.spread(x))


def test_two_outputs():
    objective = Objective(seeded(TwoHeads), nn.GaussianNLLLoss(), (VECTORS, REALS), microbatch_size=3)
    curved = linearize(objective)
    check(objective, columns(curved.matvec, curved.space.size))


def test_data_without_countable_rows_and_outputs_of_another_shape():
    """One mesh of points for several functions: the outputs are no rows of examples."""
    model = seeded(mlp)

    def forward(model, inputs):
        return model(inputs).T.reshape(-1)

    targets = randn(3 * ROWS, seed=11)
    objective = Objective(model, nn.MSELoss(), (VECTORS, targets), forward=forward)
    check(objective, dense_oracle(seeded(mlp), nn.MSELoss(), VECTORS, targets, forward=forward).ggn)


def test_models_whose_rows_mix_are_refused_in_words():
    for norm in (nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False).eval()):
        curved = linearize(Objective(Centred(norm).double(), nn.MSELoss(), (VECTORS, REALS)))
        with pytest.raises(ValueError, match="batch norm 'first' normalises by the batch"):
            curved.rows()
    curved = linearize(Objective(Centred(Minus()).double(), nn.MSELoss(), (VECTORS, REALS)))
    with pytest.raises(ValueError, match="depend on other examples"):
        curved.rows()
    with pytest.raises(ValueError, match="depend on other examples"):
        list(curved.row_pieces(3))
    model = Centred(nn.BatchNorm1d(4)).double().eval()
    objective = Objective(model, nn.MSELoss(), (VECTORS, REALS))
    check(objective, columns(linearize(objective).matvec, 23))


@pytest.mark.parametrize("name", WITHOUT)
def test_a_loss_without_a_root_is_refused_in_words(name):
    with pytest.raises(ValueError, match="no root of the Hessian of the loss in the outputs is known"):
        linearize(objective_of(name)).rows()


def test_what_has_no_rows_says_so(monkeypatch):
    objective = objective_of("cross_entropy")
    with pytest.raises(ValueError, match="the Hessian is no product"):
        linearize(objective, curvature="hessian").rows()
    with pytest.raises(RuntimeError, match="products=False"):
        linearize(objective, products=False).rows()
    with pytest.raises(ValueError, match="most must be"):
        list(linearize(objective).row_pieces(0))
    curved = linearize(objective)
    with torch.no_grad():
        next(objective.model.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="parameters changed"):
        curved.rows()
    model = nn.Linear(4, 3).double()
    free = Objective.from_forward(model, lambda: ((z := model(VECTORS)).square().mean().sqrt(), z))
    with pytest.raises(ValueError, match="from_forward has rows where its loss is a sum of convex functions"):
        linearize(free).rows()
    monkeypatch.setattr("latephase.curvature.rows.chunk_rows.SMALL", 0)
    monkeypatch.setattr("latephase.curvature.rows.chunk_rows.available", lambda device: 1_000)
    with pytest.raises(MemoryError, match=r"rows of .* parameters are .* take the rows in pieces"):
        linearize(objective).rows()


def test_nothing_else_changes(unchanged):
    case = CASES["batch_norm_eval"]
    objective = objective_of("batch_norm_eval", microbatch_size=4)
    curved = linearize(objective)
    v = randn(curved.space.size, seed=3)
    before = bits([curved.matvec(v), curved.gradient])
    with unchanged(objective.model, generator=True):
        curved.rows()
    assert bits([curved.matvec(v), curved.gradient]) == before
    assert case.loss is objective.program.loss


def test_parameters_narrower_than_the_flat_vectors():
    model = seeded(mlp).to(torch.bfloat16)
    objective = Objective(model, nn.CrossEntropyLoss(), (VECTORS.to(torch.bfloat16), CASES["cross_entropy"].targets))
    curved = linearize(objective)
    rows = curved.rows()
    assert rows.dtype == torch.float32
    expected = columns(lambda v: curved.matvec(v.float()), curved.space.size)
    assert relative(gram(rows), expected) < 0.05
