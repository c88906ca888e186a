"""What a Gauss-Newton step takes is said before it: sizes, memory as it is measured, where it does not fit."""

import resource
from pathlib import Path

import pytest
import torch
from dense_models import flat
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from latephase import Direct, Fixed, GaussNewton, Objective, check, layerwise
from latephase.curvature import linearize
from latephase.objective.memory import peak_bytes
from rank_processes import results_of_ranks

CPU = torch.device("cpu")


def network(width: int, outputs: int = 1, depth: int = 1, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), *layers, nn.Linear(width, outputs)).to(dtype)


def size_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def data_of(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return x, x.sum(1, keepdim=True).sin()


@pytest.mark.parametrize(
    ("rows", "width", "solver", "dtype"),
    [
        (400, 60, Direct(), torch.float64),
        (3000, 15, Direct(), torch.float64),
        (1000, 31, Direct(), torch.float64),
        (400, 60, Direct(factorization="svd"), torch.float64),
        (3000, 15, Direct(factorization="svd"), torch.float64),
        (400, 60, Direct(dtype=torch.float64), torch.float32),
        (3000, 15, Direct(dtype=torch.float64), torch.float32),
    ],
)
def test_a_step_takes_what_was_announced(rows, width, solver, dtype):
    """To a fifth, beside the pass over the model: what tensors hold, since what LAPACK takes inside is not seen."""
    model = network(width, dtype=dtype)
    objective = Objective(model, nn.MSELoss(), data_of(rows, dtype))
    optimizer = GaussNewton(model.parameters(), solver=solver, damping=Fixed(1.0))
    own = peak_bytes(lambda: linearize(objective, method="double_backward").gradient, CPU)
    measured = peak_bytes(lambda: optimizer.step(objective), CPU) - own
    plan = solver.plan(rows, size_of(model), dtype)
    assert plan.bytes == pytest.approx(measured, rel=0.2)
    assert plan.side == ("dual" if rows < plan.size else "primal")


@given(
    rows=st.integers(0, 10**7),
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=4),
    side=st.sampled_from(["auto", "primal", "dual"]),
    factorization=st.sampled_from(["auto", "cholesky", "eigh", "svd"]),
    room=st.none() | st.integers(0, 10**12),
    wide=st.booleans(),
)
def test_plans_of_any_sizes(rows, sizes, side, factorization, room, wide):
    solver = Direct(side=side, factorization=factorization)
    plan = solver.plan(rows, sizes, torch.float64 if wide else torch.float32, room)
    assert (plan.rows, plan.size) == (rows, sum(sizes))
    assert 0 <= plan.bytes <= plan.most_bytes
    if plan.whole:
        assert plan.bytes >= rows * sum(sizes) * (8 if wide else 4)
    more = solver.plan(rows + 1, sizes, torch.float64, room)
    assert more.multiplications >= plan.multiplications
    assert f"{rows:,} rows of {sum(sizes):,} parameters" in str(plan)
    plan.check_fit(plan.bytes)
    if plan.bytes:
        with pytest.raises(MemoryError):
            plan.check_fit(plan.bytes - 1)


def test_blocks_take_their_own_matrices():
    whole, blocks = Direct().plan(10**4, 1000), Direct().plan(10**4, [500, 500])
    assert whole.bytes - blocks.bytes == 3 * 4 * (1000**2 - 2 * 500**2)


def test_an_error_says_what_would_do_before_anything_is_allocated(unchanged):
    """Three million rows of a million parameters; the pass over the model takes megabytes."""
    model = nn.Linear(1000, 1000, bias=False)
    data = torch.ones(3000, 1000), torch.zeros(3000, 1000)
    optimizer, objective = GaussNewton(model.parameters(), damping=1.0), Objective(model, nn.MSELoss(), data)

    def refused() -> None:
        with pytest.raises(MemoryError) as raised:
            optimizer.step(objective)
        said = str(raised.value)
        assert "3,000,000 rows of 1,000,000 parameters takes 12 TB on the primal side" in said
        for remedy in ("free", "objective.subsample", "HessianFree", "blocks=True", "float32"):
            assert remedy in said

    with unchanged(model, optimizer):
        assert peak_bytes(refused, CPU) < 2e8


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("factorization", ["auto", "eigh"])
def test_rows_in_pieces_take_the_same_step(blocks, momentum, factorization):
    """J~ is not whole where the objective's memory limit says so."""
    models, found = (network(3), network(3)), []
    solver = Direct(acceleration=0.0, factorization=factorization)
    for model, limit in zip(models, (None, 1000), strict=True):
        objective = Objective(model, nn.MSELoss(), data_of(90), memory_limit=limit, microbatch_size=25)
        params = layerwise(model) if blocks else model.parameters()
        optimizer = GaussNewton(params, solver=solver, damping=Fixed(0.1), blocks=blocks, momentum=momentum)
        for _ in range(3):
            optimizer.step(objective)
        found.append(flat(model))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def test_an_l2_term_of_some_parameters_leaves_the_primal_side():
    """There is no dual form then, so that the matrix is [P, P] though there are fewer rows."""
    model = network(5)
    objective = Objective(model, nn.MSELoss(), data_of(4), weight_decay=(0.1, lambda name, p: p.dim() > 1))
    optimizer = GaussNewton(model.parameters(), damping=Fixed(0.1))
    optimizer.step(objective)
    assert optimizer.report.accepted


def test_check_says_it():
    model = network(6)
    finding = check(model, nn.MSELoss(), data_of(50)).finding("rows")
    assert finding.severity == "ok"
    assert "50 rows of 79 parameters, solved on the dual side" in finding.message
    assert finding.value == (50, 79, Direct().plan(50, 79, torch.float64).bytes)
    report = check(network(6, 2), lambda outputs, targets: (outputs - targets).abs().mean(), data_of(50))
    assert report.finding("rows").severity == "note"
    assert "no rows to work with: no root of the Hessian" in report.finding("rows").message


def a_million_rows(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Path("/proc/self/statm").open() as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * 2**30,) * 2)
    rows, model = 10**6, network(8)
    x = torch.rand(rows, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def fit(model: nn.Module, x: Tensor) -> Tensor:
        return model(x) - x.sum(1, keepdim=True).sin()

    objective = Objective.from_residuals(model, {"fit": (fit, x)}, microbatch_size=50_000)
    optimizer = GaussNewton(model.parameters(), damping=0.1)
    losses = [float(optimizer.step(objective)) for _ in range(2)]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numbers = {"losses": losses, "more": (most - here) * 1024, "rows": 8 * rows * size_of(model)}
    torch.save(numbers, Path(folder) / "rank0.pt")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the process's size is read of Linux")
def test_a_million_rows_come_in_pieces(tmp_path):
    """In a process that may grow by 2 GiB: J~ of one is 0.9 GB, the rows of a piece and their passes are half a GiB."""
    (found,) = results_of_ranks(a_million_rows, tmp_path, 1, 300)
    assert found["losses"][1] < found["losses"][0]
    assert found["more"] < found["rows"]
