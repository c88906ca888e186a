"""Structural damping where rows are solved for: J~'J~ and steps against dense Jacobians of outputs and hidden units."""

import warnings

import pytest
import torch
from dense_models import dense_model, without_cross_blocks
from test_structural_damping import GROUPS, P, Recurrent, sequences, step_of, structural
from torch import nn

from latephase import GGN, Direct, Fixed, GaussNewton, LevenbergMarquardt, Objective, layerwise
from latephase.curvature import linearize, structurally_damped

STRENGTH = 0.6
EXACT = {"rtol": 1e-10, "atol": 1e-12}
"""Float64; the damped matrices have conditions below 1e4."""


def optimizer_of(params, damping=0.2, mu=3.0, **options):
    return GaussNewton(params, curvature=GGN(structural_damping=mu), damping=Fixed(damping), **options)


@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid", "relu", "softplus"])
@pytest.mark.parametrize("form", ["tensor", "tuple"])
@pytest.mark.parametrize("chunks", [None, 5])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_rows_make_up_the_matrix(nonlinearity, form, chunks, reduction):
    model, data = Recurrent(nonlinearity, form), sequences()
    loss = nn.CrossEntropyLoss(reduction=reduction)
    expected = dense_model(model, loss, data).matrix + STRENGTH * structural(model, data[0], reduction)
    for limit in (None, 0):  # chunks that are kept, and such as are linearised anew
        objective = Objective(model, loss, data, microbatch_size=chunks, memory_limit=limit)
        curved = linearize(structurally_damped(objective, STRENGTH))
        rows = curved.rows()
        assert len(rows) == curved.row_count() == len(data[0]) * (3 + 4 * 3)
        torch.testing.assert_close(rows.mT @ rows, expected, **EXACT)
        torch.testing.assert_close(curved.gram()[0], expected, **EXACT)
        torch.testing.assert_close(curved.row_kernel(), rows @ rows.mT, **EXACT)
        torch.testing.assert_close(rows.mT @ curved.residual(), curved.gradient, **EXACT)
        torch.testing.assert_close(curved.matvec(rows[0]), expected @ rows[0], **EXACT)


@pytest.mark.parametrize("side", ["auto", "primal", "dual"])
@pytest.mark.parametrize("chunks", [None, 5])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")])
def test_a_step_is_the_dense_one(side, chunks, loss):
    model, data = Recurrent(), sequences()
    oracle, extra = dense_model(model, loss, data), STRENGTH * structural(model, data[0], loss.reduction)
    expected = torch.linalg.solve(oracle.matrix + extra + 0.2 * torch.eye(P, dtype=torch.float64), -oracle.gradient)
    plain = torch.linalg.solve(oracle.matrix + 0.2 * torch.eye(P, dtype=torch.float64), -oracle.gradient)
    assert (expected - plain).norm() > 0.1 * plain.norm(), "the term is to make a difference"
    optimizer = optimizer_of(model.parameters(), solver=Direct(side=side))
    step = step_of(model, optimizer, Objective(model, loss, data, microbatch_size=chunks))
    torch.testing.assert_close(step, expected, **EXACT)
    assert optimizer.report.predicted_change == pytest.approx(oracle.change(expected, oracle.matrix + extra), rel=1e-9)
    assert optimizer.report.loss == pytest.approx(oracle.loss, rel=1e-12)


def test_squared_error_blocks_scales_and_an_l2_term():
    model, (inputs, _) = Recurrent(), sequences()
    data = (inputs, torch.randn(12, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64))
    groups = layerwise(model)
    scales = torch.tensor([1.0] * 9 + [0.5] * 9 + [2.0] * 12, dtype=torch.float64)
    for group, scale in zip(groups, (1.0, 0.5, 2.0), strict=True):
        group["damping_scale"] = scale
    oracle = dense_model(model, nn.MSELoss(), data, weight_decay=0.1)
    curved = without_cross_blocks(oracle.matrix + STRENGTH * structural(model, inputs), GROUPS)
    expected = torch.linalg.solve(curved + 0.2 * torch.diag(scales), -oracle.gradient)
    optimizer = optimizer_of(groups, blocks=True)
    step = step_of(model, optimizer, Objective(model, nn.MSELoss(), data, weight_decay=0.1))
    torch.testing.assert_close(step, expected, **EXACT)
    assert not optimizer.report.accelerated  # the residuals of the hidden units have no second derivative to go by


def test_targets_that_do_not_count_hold_their_hidden_units():
    """In chunks of five a whole one has no loss."""
    model, (inputs, targets) = Recurrent(), sequences()
    targets[5:10] = -100
    oracle = dense_model(model, nn.CrossEntropyLoss(), (inputs, targets))
    matrix = oracle.matrix + STRENGTH * structural(model, inputs) + 0.2 * torch.eye(P, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, -oracle.gradient)
    for chunks in (None, 5):
        twin = Recurrent()
        objective = Objective(twin, nn.CrossEntropyLoss(), (inputs, targets), microbatch_size=chunks)
        torch.testing.assert_close(step_of(twin, optimizer_of(twin.parameters()), objective), expected, **EXACT)


def test_a_network_learns_with_it():
    model, data = Recurrent(), sequences()
    optimizer = GaussNewton(model.parameters(), curvature=GGN(structural_damping=0.1), damping=LevenbergMarquardt(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [float(optimizer.step(Objective(model, nn.CrossEntropyLoss(), data))) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
