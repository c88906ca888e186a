"""Preconditioners of two processes that share the data are those of one process that has it all."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.preconditioners import EmpiricalFisher, GGNDiagonal, Kronecker, Nystrom
from rank_processes import results_of_ranks

pytestmark = pytest.mark.xdist_group("precond_ranks")  # what all tests of this file stand on is made once

RANKS = 2
SHARES = (slice(0, 5), slice(5, 16))  # unequal
TIMEOUT = 150  # seconds for all of the children's work: some three, and the import of torch twice
TIGHT = 1e-10
PROBES = 500


def network(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def objective_of(kind: str, rows: slice, group=None, **options) -> Objective:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    y, real = torch.randint(3, (16,), generator=generator), x[:, :1].sin()
    y[[2, 3, 9]] = -100
    model, loss, targets = network(), nn.CrossEntropyLoss(), y
    if kind == "real":
        model, loss, targets = network(1), nn.MSELoss(), real
    elif kind == "products":
        loss, targets = own_loss, x
    return Objective(model, loss, (x[rows], targets[rows]), weight_decay=0.01, process_group=group, **options)


def own_loss(outputs, targets):
    """Not convex, so that its Hessian has no root."""
    return (outputs - targets).cos().mean()


own_loss.reduction = "mean"  # pyright: ignore[reportFunctionMemberAccess]
own_loss.normalizer = len  # pyright: ignore[reportFunctionMemberAccess]

CASES = {
    "fisher": ("classes", EmpiricalFisher()),
    "nystrom": ("classes", Nystrom(rank=6)),
    "diagonal": ("classes", GGNDiagonal(probes=PROBES)),
    "hutchinson": ("products", GGNDiagonal(probes=3)),
    "kfac": ("real", Kronecker(probes=2)),
}
EXACT = [name for name in CASES if name != "diagonal"]


def estimates(rows: slice, group=None, **options) -> dict[str, Any]:
    found = {}
    for name, (kind, method) in CASES.items():
        curved = linearize(objective_of(kind, rows, group, **options))
        torch.manual_seed(7 + (dist.get_rank() if group else 0))  # the first rank's draw counts
        found[name] = method.estimate(curved, [curved.space.size])
    return found


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    group = dist.group.WORLD
    found: dict[str, Any] = {"whole": estimates(SHARES[rank], group)}
    found["chunks"] = estimates(SHARES[rank], group, microbatch_size=3)
    # a loss that is known on no rank, and one that has a root on the second only
    for name, targets in (("unknown", None), ("negative", -1.0 if rank == 0 else 1.0)):
        x = torch.ones(4, 3, dtype=torch.float64)
        loss = nn.L1Loss() if targets is None else nn.PoissonNLLLoss(log_input=False)
        model = nn.Sequential(nn.Linear(3, 1), nn.Softplus()).double()
        for p in model.parameters():
            dist.broadcast(p.detach(), 0)
        y = torch.full((4, 1), targets or 0.5, dtype=torch.float64)
        curved = linearize(Objective(model, loss, (x, y), process_group=group))
        try:
            Kronecker().estimate(curved, [4])
        except ValueError as error:
            found[name] = str(error)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return results_of_ranks(child, tmp_path_factory.mktemp("ranks"), RANKS, TIMEOUT)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return estimates(slice(0, 16))


@pytest.mark.parametrize("how", ["whole", "chunks"])
def test_ranks_have_the_same_estimates(ranks, how):
    first, second = (found[how] for found in ranks)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].keys() == second[name].keys()
        assert all(torch.equal(first[name][key], second[name][key]) for key in first[name]), name


@pytest.mark.parametrize("how", ["whole", "chunks"])
@pytest.mark.parametrize("name", EXACT)
def test_they_are_those_of_one_process(ranks, alone, name, how):
    """As M^-1, since eigenvectors may change their signs. Nystrom's method costs half the digits."""
    if name not in alone:
        pytest.skip("K-FAC's factors come from an optional package")
    method = CASES[name][1]
    size = len(alone[name]["diagonal"]) if "diagonal" in alone[name] else alone[name]["vectors"].shape[1]
    unit = torch.eye(size, dtype=torch.float64)
    expected, found = (
        torch.stack([method.inverse(estimate, 0.1, [size])(row) for row in unit])
        for estimate in (alone[name], ranks[0][how][name])
    )
    assert float((found - expected).abs().max()) < (1e-6 if name == "nystrom" else TIGHT) * float(expected.abs().max())


@pytest.mark.parametrize("how", ["whole", "chunks"])
def test_the_estimated_diagonal_has_the_same_mean(ranks, how):
    """Five standard errors of it."""
    curved = linearize(objective_of("classes", slice(0, 16)))
    exact = torch.stack([curved.quadratic_form(unit) for unit in torch.eye(31, dtype=torch.float64)])
    found = ranks[0][how]["diagonal"]["diagonal"]
    assert bool(((found - exact).abs() <= 5 * (2 / PROBES) ** 0.5 * exact).all())


@pytest.mark.parametrize("case", ["unknown", "negative"])
def test_a_loss_without_a_root_on_any_rank_raises_on_every_rank(ranks, case):
    assert all("K-FAC needs a loss" in found[case] for found in ranks)
