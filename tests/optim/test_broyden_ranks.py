"""Self-scaled Broyden over the ranks of a process group."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from latephase import Objective, SelfScaledBroyden
from rank_processes import results_of_ranks


def begun(rows, group=None, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    y = x[:, :1].sin() + x[:, 1:2]
    return model, Objective(model, nn.MSELoss(), (x[rows], y[rows]), weight_decay=0.01, process_group=group)


def trained(rows, group=None, written=None):
    """Twelve steps; after the sixth the rank that is said writes into its data, which all ranks must notice."""
    model, objective = begun(rows, group)
    optimizer, reports = SelfScaledBroyden(model.parameters()), []
    for step in range(12):
        if step == 6 and written:
            objective.chunks[0].targets.mul_(1.0)
        optimizer.step(objective)
        reports.append(optimizer.report.as_dict() | {"seconds": 0})
    return {"parameters": torch.cat([p.detach().reshape(-1) for p in model.parameters()]), "reports": reports}


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = trained((slice(0, 5), slice(5, 16))[rank], dist.group.WORLD, written=rank == 1)
    model, objective = begun(slice(0, 4), dist.group.WORLD, seed=rank)
    try:
        SelfScaledBroyden(model.parameters()).step(objective)
    except ValueError as error:
        found["message"] = str(error)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path):
    first, second = results_of_ranks(child, tmp_path, 2, timeout=150)
    assert first["reports"] == second["reports"]
    assert torch.equal(first["parameters"], second["parameters"])
    assert "differs between ranks" in first["message"]
    assert first["message"] == second["message"]
    alone = trained(slice(0, 16), written=True)
    torch.testing.assert_close(first["parameters"], alone["parameters"], rtol=1e-7, atol=1e-9)
    counts = [[each["gradients"] for each in run["reports"]] for run in (first, alone)]
    assert counts[0] == counts[1]
