"""Quadratic learning rates over the ranks of a process group."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from quadratic_lr_bases import cross_entropy, steps
from torch import nn

from latephase import AdamQLR, DecreasingLoss
from rank_processes import results_of_ranks


def ranks_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def ranks_data(rows):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    return x[rows], torch.randint(3, (16,), generator=generator)[rows]


def ranks_run(rows, group=None):
    model = ranks_model()
    optimizer = AdamQLR(model.parameters(), damping=DecreasingLoss(1e-3, factors=(0.5, 2.0)), lr_clip=1.0)
    reports = [report for _, report in steps(optimizer, cross_entropy(model, ranks_data(rows), process_group=group), 8)]
    return {"parameters": torch.cat([p.detach().reshape(-1) for p in model.parameters()]), "reports": reports}


def ranks_child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = ranks_run((slice(0, 5), slice(5, 16))[rank], dist.group.WORLD)
    model = ranks_model(seed=rank)
    try:
        AdamQLR(model.parameters()).step(cross_entropy(model, ranks_data(slice(0, 4)), process_group=dist.group.WORLD))
    except ValueError as error:
        found["message"] = str(error)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path):
    first, second = results_of_ranks(ranks_child, tmp_path, 2, timeout=150)
    assert first["reports"] == second["reports"]
    assert torch.equal(first["parameters"], second["parameters"])
    assert "differs between ranks" in first["message"]
    assert first["message"] == second["message"]
    alone = ranks_run(slice(0, 16))
    torch.testing.assert_close(first["parameters"], alone["parameters"], rtol=1e-9, atol=1e-12)
