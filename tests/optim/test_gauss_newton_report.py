"""What a Gauss-Newton step reports, in writers too, and the warning where float32 has no digits for a damping."""

import copy
import json
import math
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from dense_models import dense_model
from torch import Tensor, nn

from latephase import (
    Direct,
    Fixed,
    GaussNewton,
    GaussNewtonReport,
    HessianFree,
    JSONLinesWriter,
    LevenbergMarquardt,
    Objective,
    StepReport,
    TensorBoardWriter,
    layerwise,
)


def problem(rows: int = 7, width: int = 5, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Objective]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)).to(dtype)
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return model, Objective(model, nn.MSELoss(), (x, x[:, :2].sin()))


def reported(optimizer: torch.optim.Optimizer, objective: Objective, **options: Objective) -> GaussNewtonReport:
    optimizer.step(objective, **options)
    report = optimizer.report
    assert isinstance(report, GaussNewtonReport)
    return report


@pytest.mark.parametrize(("rows", "side"), [(7, "dual"), (40, "primal")])
def test_sides_decompositions_and_dampings(rows, side):
    model, objective = problem(rows)
    report = reported(GaussNewton(model.parameters(), damping=Fixed(0.1)), objective)
    assert (report.rows, report.sides, report.method) == (2 * rows, (side,), "none")
    assert (report.cholesky, report.eigh, report.svd, report.dampings) == (1, 0, 0, 1)
    assert (report.damping, report.products) == (0.1, 0)
    for name, counts in {"eigh": (0, 1, 0), "svd": (0, 0, 1)}.items():
        model, objective = problem(rows)
        report = reported(
            GaussNewton(model.parameters(), solver=Direct(factorization=name), damping=Fixed(0.1)), objective
        )
        assert (report.cholesky, report.eigh, report.svd) == counts


def test_each_damping_that_was_tried_counts():
    """The step fits the targets turned about, so that none lowers the loss that judges it."""
    model, objective = problem()
    x, y = objective.chunks[0].inputs, objective.chunks[0].targets
    wrong = objective.on((x, 2 * model(x).detach() - y))
    optimizer = GaussNewton(model.parameters(), damping=LevenbergMarquardt(1e-4))
    report = reported(optimizer, objective, evaluation=wrong)
    assert report.dampings > 5
    assert report.cholesky + report.svd >= report.dampings
    assert report.damping > 1e-4
    assert not report.same_data


def test_blocks_have_a_side_each():
    model, objective = problem(12, 6)
    report = reported(GaussNewton(layerwise(model), blocks=True, damping=Fixed(0.1)), objective)
    assert report.sides == ("dual", "primal")
    assert report.cholesky == 2


def test_the_correction_is_told():
    for limit, accelerated in ((0.75, True), (0.0, False), (1e-9, False)):
        model, objective = problem(40)
        optimizer = GaussNewton(model.parameters(), solver=Direct(acceleration=limit), damping=Fixed(1.0))
        assert reported(optimizer, objective).accelerated is accelerated


def test_a_linear_model_has_nothing_to_correct():
    """r(theta + p) - r - J p is made of rounding, whichever the scale of the residuals."""
    for scale in (1e-6, 1.0, 1e6):
        torch.manual_seed(0)
        model = nn.Linear(4, 2).double()
        x = scale * torch.randn(30, 4, dtype=torch.float64)
        optimizer = GaussNewton(model.parameters(), damping=Fixed(1e-3 * scale**2))
        assert not reported(optimizer, Objective(model, nn.MSELoss(), (x, 3 * x[:, :2]))).accelerated


def test_whose_data_judged():
    model, objective = problem(20)
    other = problem(9)[1].chunks[0]
    for optimizer in (GaussNewton(model.parameters()), HessianFree(model.parameters())):
        optimizer.step(objective)
        assert optimizer.report.same_data
        optimizer.step(objective, evaluation=objective.on((other.inputs, other.targets)))
        assert not optimizer.report.same_data


def test_the_solver_makes_the_report():
    model, objective = problem()
    assert reported(HessianFree(model.parameters(), solver=Direct(), line_search=False), objective).rows == 14
    plain = HessianFree(model.parameters())
    plain.step(objective)
    assert isinstance(plain.report, StepReport)


def test_a_step_that_ended_before_its_rows():
    model, objective = problem()
    with torch.no_grad():
        model[0].weight.fill_(1e300)
        model[2].weight.fill_(1e300)
    report = reported(GaussNewton(model.parameters()), objective)
    assert (report.status, report.rows, report.sides, report.dampings) == ("nonfinite", 0, (), 0)
    json.dumps(report.as_dict())


def test_writers_write_it(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, objective = problem(40)
    optimizer = GaussNewton(model.parameters())
    lines, board = JSONLinesWriter(tmp_path / "steps.jsonl"), TensorBoardWriter(tmp_path / "board")
    for writer in (lines, board):
        optimizer.register_step_post_hook(writer)
    reports = [reported(optimizer, objective) for _ in range(2)]
    for writer in (lines, board):
        writer.close()
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["cholesky"] for row in rows] == [report.cholesky for report in reports]
    assert rows[0]["sides"] == ["primal"]
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    for name in ("rows", "cholesky", "eigh", "svd", "dampings", "accelerated"):
        found = [event.value for event in events.Scalars(f"direct/{name}")]
        assert found == [float(getattr(report, name)) for report in reports]


# ---------------------------------------------------------------------------------------------------------------------
# float32 where it will not do


def ill_conditioned(dtype: torch.dtype) -> tuple[nn.Module, Objective]:
    """A linear regression on columns that are multiples of each other but for a thousandth."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    x = x + 1e-3 * torch.randn(50, 6, generator=generator, dtype=torch.float64)
    model = nn.Linear(6, 1, bias=False)
    nn.init.zeros_(model.weight)
    y = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    return model.to(dtype), Objective(model.to(dtype), nn.MSELoss(), (x.to(dtype), y.to(dtype)))


@pytest.mark.parametrize("factorization", ["auto", "cholesky", "eigh"])
def test_float32_below_the_rounding_of_the_matrix_is_told_once(factorization):
    model, objective = ill_conditioned(torch.float32)
    optimizer = GaussNewton(model.parameters(), solver=Direct(factorization=factorization), damping=Fixed(1e-6))
    with pytest.warns(UserWarning, match=r"1.0e-06 has 0\.\d digits left .* float64, or Direct\(dtype=torch.float64\)"):
        optimizer.step(objective)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.step(objective)


def test_digits_are_those_of_the_largest_eigenvalue():
    model, objective = ill_conditioned(torch.float32)
    x = objective.chunks[0].inputs.double()
    matrix = 2 / 50 * x.T @ x
    expected = math.log10(4e-6 / float(matrix.trace()) / torch.finfo(torch.float32).eps)
    optimizer = GaussNewton(model.parameters(), damping=Fixed(4e-6))
    with pytest.warns(UserWarning, match=f"has {expected:.1f} digits left"):
        optimizer.step(objective)


def test_no_word_where_it_will_do():
    for dtype, solver, damping in (
        (torch.float64, Direct(), 1e-6),
        (torch.float32, Direct(dtype=torch.float64), 1e-6),
        (torch.float32, Direct(), 1e-3),
    ):
        model, objective = ill_conditioned(dtype)
        GaussNewton(model.parameters(), solver=solver, damping=Fixed(damping)).step(objective)


@pytest.mark.parametrize("side", ["primal", "dual"])
def test_a_float64_solve_keeps_what_float32_loses(side):
    """Beside the float64 step: rows in float32 leave four digits of the singular values that are a thousandth."""
    model, objective = ill_conditioned(torch.float64)
    dense = dense_model(model, nn.MSELoss(), (objective.chunks[0].inputs, objective.chunks[0].targets))
    matrix = dense.matrix + 1e-6 * torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, -dense.gradient)

    def error(solver: Direct) -> float:
        model, objective = ill_conditioned(torch.float32)
        GaussNewton(model.parameters(), solver=solver, damping=Fixed(1e-6)).step(objective)
        found: Tensor = model.weight.detach().double().flatten()
        return float((found - expected).norm() / expected.norm())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        narrow = error(Direct(side=side, factorization="eigh"))
    assert error(Direct(side=side, dtype=torch.float64)) < min(0.1 * narrow, 1e-2)


def test_copies_know_that_it_was_told():
    model, objective = ill_conditioned(torch.float32)
    optimizer = GaussNewton(model.parameters(), damping=Fixed(1e-6))
    with pytest.warns(UserWarning, match="digits"):
        optimizer.step(objective)
    assert pickle.loads(pickle.dumps(optimizer.report)) == optimizer.report
    assert copy.deepcopy(optimizer).report == optimizer.report
