"""K-FAC over the ranks of a process group."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from latephase import Objective
from latephase.optim.kfac import KFAC
from rank_processes import results_of_ranks


def kfac_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def kfac_objective(model, rows, group=None):
    """One output and squared errors: the random signs, which differ between ranks and chunks, square to one."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    y = x[:, :1].sin() + x[:, 1:2]
    return Objective(model, nn.MSELoss(), (x[rows], y[rows]), weight_decay=0.01, process_group=group)


def kfac_run(rows, group=None):
    model = kfac_model()
    optimizer, reports = KFAC(model.parameters(), damping=0.1, adapt_period=2), []
    for _ in range(8):
        optimizer.step(kfac_objective(model, rows, group))
        reports.append(optimizer.report.as_dict() | {"seconds": 0})
    return {"parameters": torch.cat([p.detach().reshape(-1) for p in model.parameters()]), "reports": reports}


def kfac_child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = kfac_run((slice(0, 5), slice(5, 16))[rank], dist.group.WORLD)
    model = kfac_model(seed=rank)
    try:
        KFAC(model.parameters()).step(kfac_objective(model, slice(0, 4), dist.group.WORLD))
    except ValueError as error:
        found["message"] = str(error)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path):
    first, second = results_of_ranks(kfac_child, tmp_path, 2, timeout=150)
    assert first["reports"] == second["reports"]
    assert torch.equal(first["parameters"], second["parameters"])
    assert "differs between ranks" in first["message"]
    assert first["message"] == second["message"]
    alone = kfac_run(slice(0, 16))
    torch.testing.assert_close(first["parameters"], alone["parameters"], rtol=1e-9, atol=1e-12)
    assert first["reports"][-1]["momentum"] == pytest.approx(alone["reports"][-1]["momentum"], rel=1e-6)
