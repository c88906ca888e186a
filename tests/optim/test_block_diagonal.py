"""Block-diagonal Hessian-free: its steps against dense solves with the cross blocks set to zero, and its report."""

import copy
import json

import pytest
import torch
from block_models import (
    LABELS,
    NETWORKS,
    ROWS,
    VECTORS,
    interleaved,
    model_of,
    objective_of,
    oracle_of,
    places,
    solved,
    step_of,
    system,
)
from dense_models import Model, blockwise_cg, cg, dense_model, flat
from torch import Tensor, nn

from flat_parts import parts
from latephase import HessianFree, Objective, by_module, layerwise
from latephase.solve import CGStatus

CG_ALONE = {"candidates": "last", "line_search": False, "fixed": True, "blocks": True}
EXACT = CG_ALONE | {"stopping": "residual", "tolerance": 1e-13}
SOLVED = {"rtol": 1e-8, "atol": 1e-10}  # float64, condition numbers below 1e3, CG to 1e-13 of |b|
METHODS = {"products", "pruned", "jacobian", "bottleneck"}


@pytest.mark.parametrize(
    ("name", "curvature", "groups_of"),
    [(name, "ggn", layerwise) for name in NETWORKS]
    + [(name, "ggn", interleaved) for name in ("linear", "convolution", "tied", "frozen")]
    + [(name, "hessian", layerwise) for name in ("linear", "batch_norm", "tied")],
)
def test_steps_are_dense_solves_without_cross_blocks(name, curvature, groups_of):
    model, damping = model_of(name), {"ggn": 1.0, "hessian": 8.0}[curvature]  # the Hessians have eigenvalues below -1
    groups = groups_of(model)
    blocks = places(model, groups)
    optimizer = HessianFree(groups, **parts(curvature=curvature, damping=damping, **EXACT))
    for _ in range(2):  # the second from a start, and with what the first step has prepared
        oracle = oracle_of(name, model, curvature=curvature)
        step = step_of(model, optimizer, objective_of(name, model))
        torch.testing.assert_close(step, solved(oracle, blocks, [damping] * len(blocks)), **SOLVED)
        assert len(optimizer.report.block_methods) == len(blocks)
        assert set(optimizer.report.block_methods) <= METHODS


@pytest.mark.parametrize("name", ["autoencoder", "tied"])
def test_encoder_and_decoder(name):
    model = model_of(name)
    groups = by_module(model, ["encoder", "decoder"])
    groups[1]["damping_scale"] = 0.2
    optimizer = HessianFree(groups, **parts(damping=0.5, **EXACT))
    oracle = oracle_of(name, model, weight_decay=0.1)
    step = step_of(model, optimizer, objective_of(name, model, weight_decay=0.1, microbatch_size=4))
    torch.testing.assert_close(step, solved(oracle, places(model, groups), [0.5, 0.1]), **SOLVED)


def test_the_ratio_is_that_of_the_model_in_blocks():
    model = model_of("linear")
    groups = layerwise(model)
    groups[0]["damping_scale"], groups[2]["damping_scale"] = 0.1, 3.0
    oracle, blocks = oracle_of("linear", model), places(model, groups)
    optimizer = HessianFree(groups, **parts(damping=1.0, **EXACT))
    step = step_of(model, optimizer, objective_of("linear", model))
    torch.testing.assert_close(step, solved(oracle, blocks, [0.1, 1.0, 3.0]), **SOLVED)
    curvature = sum(float(step[rows] @ oracle.matrix[rows][:, rows] @ step[rows]) for rows in blocks)
    predicted = float(oracle.gradient @ step) + 0.5 * curvature
    assert optimizer.report.predicted_change == pytest.approx(predicted, rel=1e-8)
    assert optimizer.report.reduction_ratio == pytest.approx(
        (oracle_of("linear", model).loss - oracle.loss) / predicted, rel=1e-7
    )
    assert abs(oracle.change(step) - predicted) > 1e-3 * abs(predicted), "else the cross terms would not be seen"


def test_gradient_and_curvature_of_different_data():
    model = model_of("linear")
    groups = layerwise(model)
    whole = objective_of("linear", model)
    part = dense_model(model, nn.CrossEntropyLoss(), (VECTORS[:3], LABELS[:3]))
    mixed = Model(0.0, oracle_of("linear", model).gradient, part.matrix)
    step = step_of(
        model, HessianFree(groups, **parts(damping=0.5, **EXACT)), whole, curvature_objective=whole.split(3)[0]
    )
    torch.testing.assert_close(step, solved(mixed, places(model, groups), [0.5] * 3), **SOLVED)


def test_a_finished_block_stays_where_it_is():
    model = model_of("linear")
    groups = layerwise(model)
    for group, tolerance in zip(groups, (0.5, 1e-9, 0.05), strict=True):
        group["tolerance"] = tolerance
    oracle, blocks = oracle_of("linear", model), places(model, groups)
    optimizer = HessianFree(groups, **parts(damping=0.05, stopping="residual", **CG_ALONE))
    step = step_of(model, optimizer, objective_of("linear", model))
    iterations = optimizer.report.cg_iterations
    assert iterations[0] < iterations[2] < iterations[1]
    for rows, count in zip(blocks, iterations, strict=True):
        torch.testing.assert_close(step[rows], cg(*system(oracle, rows, 0.05), count)[-1], rtol=1e-7, atol=1e-10)
    assert optimizer.report.cg_status == (CGStatus.RESIDUAL,) * 3


@pytest.mark.parametrize("iteration", [1, 3, 5, 7])
def test_candidates_pair_the_blocks_at_the_same_iteration(iteration):
    """The evaluation loss is the distance from the one pairing that must be among the candidates."""
    model = model_of("linear")
    groups = layerwise(model)
    for group, tolerance in zip(groups, (1e-9, 0.3, 1e-9), strict=True):
        group["tolerance"] = tolerance
    oracle, blocks, target = oracle_of("linear", model), places(model, groups), flat(model)
    options = {"stopping": "residual", "damping": 1e-2, "line_search": False, "blocks": True}
    optimizer = HessianFree(groups, **parts(**options))
    for index, rows in enumerate(blocks):
        target[rows] += cg(*system(oracle, rows, 1e-2), min(iteration, 3) if index == 1 else iteration)[-1]

    def distance() -> tuple[Tensor, Tensor]:
        away = torch.cat([p.reshape(-1) for p in model.parameters()]) - target
        return away.square().sum(), away

    optimizer.step(objective_of("linear", model), Objective.from_forward(model, distance))
    assert optimizer.report.cg_iterations[1] == 3 < 7 < min(optimizer.report.cg_iterations[::2])
    assert optimizer.report.cg_chosen == iteration
    torch.testing.assert_close(flat(model), target, rtol=1e-7, atol=1e-8)


def test_each_block_starts_from_its_last_solution():
    """With one iteration from x0 the step is x0 + alpha_b r_b; a start worse than zero is scaled, block by block."""
    model = model_of("linear")
    groups, scaled = layerwise(model), []
    blocks = places(model, groups)
    sizes, order = [len(rows) for rows in blocks], torch.cat(blocks)
    optimizer = HessianFree(groups, **parts(damping=0.1, warm_start=0.8, max_iter=1, **CG_ALONE))
    last = torch.zeros(len(order), dtype=torch.float64)
    for _ in range(6):
        oracle = oracle_of("linear", model)
        (matrix, b), x0 = system(oracle, order, 0.1), 0.8 * last
        for rows in torch.arange(len(order)).split(sizes):
            x, block = x0[rows], matrix[rows][:, rows]
            scaled.append(float(0.5 * x @ block @ x - b[rows] @ x) > 0)
            if scaled[-1]:
                x0[rows] = max(float(b[rows] @ x), 0.0) / float(x @ block @ x) * x
        last = blockwise_cg(matrix, b, 1, sizes, x0)[-1]
        step = step_of(model, optimizer, objective_of("linear", model))
        torch.testing.assert_close(step[order], last, **SOLVED)
        assert optimizer.report.cg_iterations == (1, 1, 1)
        assert optimizer.report.cg_status == (CGStatus.MAX_ITERATIONS,) * 3
    assert any(scaled)
    assert not all(scaled)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convolution", {}),
        ("autoencoder", {"preconditioner": "ggn_diagonal"}),
        ("batch_norm", {"curvature": "hessian"}),
    ],
    ids=str,
)
def test_one_block_is_full_hessian_free_bit_for_bit(name, options):
    models = [model_of(name) for _ in range(3)]
    spare = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
    groups = [models[0].parameters(), models[1].parameters(), [{"params": list(models[2].parameters())}, {}]]
    groups[2][1]["params"] = [spare]  # a group that cannot move is no block
    models[2].register_parameter("spare", spare)
    optimizers = [HessianFree(g, **parts(damping=0.3, blocks=i > 0, **options)) for i, g in enumerate(groups)]
    for _ in range(3):
        reports = []
        for model, optimizer in zip(models, optimizers, strict=True):
            torch.manual_seed(3)
            optimizer.step(objective_of(name, model, microbatch_size=None if name == "batch_norm" else 6))
            reports.append(optimizer.report.as_dict() | {"seconds": 0.0})
        assert reports[0] == reports[1] == reports[2]
        assert optimizers[1].report.block_methods is None
        for model in models[1:]:
            assert all(torch.equal(p, model.get_parameter(n)) for n, p in models[0].named_parameters())


@pytest.mark.parametrize("preconditioner", ["empirical_fisher", "ggn_diagonal", "nystrom", "kfac"])
@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_preconditioners_keep_the_solution(name, preconditioner):
    model = model_of(name)
    groups = layerwise(model)
    oracle = oracle_of(name, model)
    optimizer = HessianFree(groups, **parts(damping=0.1, preconditioner=preconditioner, **EXACT))
    step = step_of(model, optimizer, objective_of(name, model))
    torch.testing.assert_close(step, solved(oracle, places(model, groups), [0.1] * len(groups)), **SOLVED)


@pytest.mark.parametrize("options", [{}, {"samples": 3}, {"preconditioner": "nystrom"}], ids=str)
def test_a_loaded_state_continues_bit_for_bit(options):
    model = model_of("convolution")
    build = {"blocks": True, "damping": 0.1} | options
    optimizer = HessianFree(layerwise(model), **parts(**build))
    for _ in range(3):
        optimizer.step(objective_of("convolution", model))
    twin = copy.deepcopy(model)
    other = HessianFree(layerwise(twin), **parts(**build))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3):
        for each, driver in ((model, optimizer), (twin, other)):
            torch.manual_seed(seed)
            driver.step(objective_of("convolution", each))
        assert torch.equal(flat(model), flat(twin))
        assert other.report.as_dict() | {"seconds": 0} == optimizer.report.as_dict() | {"seconds": 0}


def test_the_report_has_an_entry_per_block():
    model = model_of("autoencoder")
    optimizer = HessianFree(layerwise(model), blocks=True)
    optimizer.step(objective_of("autoencoder", model))
    report = optimizer.report
    assert len(report.cg_iterations) == len(report.cg_status) == len(report.block_methods) == 6
    assert all(isinstance(status, CGStatus) for status in report.cg_status)
    assert set(report.block_methods) <= METHODS
    assert json.loads(json.dumps(report.as_dict()))["block_methods"] == list(report.block_methods)
    whole = HessianFree(layerwise(model))
    whole.step(objective_of("autoencoder", model))
    assert whole.report.block_methods is None
    assert len(whole.report.cg_iterations) == 1


def test_sampled_products_are_marked_and_drawn_anew_at_every_step():
    """Many outputs, few samples: the mean of 20 first steps along -g is near the exact one."""
    loss, found = nn.CrossEntropyLoss(), []
    for seed in (None, *range(20)):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 40)).double()
        options = {"damping": 1.0, "max_iter": 1, "samples": None if seed is None else 4}
        optimizer = HessianFree(layerwise(model), **parts(**CG_ALONE, **options))
        torch.manual_seed(seed or 0)
        found.append(step_of(model, optimizer, Objective(model, loss, (VECTORS, torch.arange(ROWS) * 4))))
        assert ("sampled" in optimizer.report.block_methods) == (seed is not None)
    exact, drawn = found[0], torch.stack(found[1:])
    assert float((drawn[0] - drawn[1]).norm()) > 1e-6 * float(exact.norm())
    assert float((drawn.mean(0) - exact).norm()) < 0.05 * float(exact.norm())


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 0, "blocks": True},
        {"samples": 1.5, "blocks": True},
        {"samples": 4, "blocks": True, "curvature": "hessian"},
    ],
    ids=str,
)
def test_samples_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=r"Blocks\.samples (must be None or an|goes with)"):
        HessianFree(layerwise(model_of("linear")), **parts(**options))
