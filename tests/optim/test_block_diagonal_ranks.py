"""Two processes that share the data, or the blocks, take the steps of one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from dense_models import flat
from torch import nn

from flat_parts import parts
from latephase import HessianFree, Objective, layerwise
from rank_processes import results_of_ranks

RANKS = 2
SHARES = (slice(0, 5), slice(5, 16))  # unequal
STEPS = 4
TIMEOUT = 150  # seconds for all of the children's work: some three, and the import of torch twice
SETTINGS = {
    "exact": {},
    "preconditioned": {"preconditioner": "empirical_fisher"},
    "residual": {"stopping": "residual", "tolerance": 1e-6, "damping": 0.1},
}


def trained(rows: slice, process_group=None, block_group=None, **options) -> torch.Tensor:
    """The parameters after some steps of a network with a narrow layer in its middle."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    layers = nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2), nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 6)
    model = nn.Sequential(*layers).double()
    objective = Objective(
        model, nn.BCEWithLogitsLoss(), (x[rows], (x > 0).double()[rows]), process_group=process_group, weight_decay=0.01
    )
    optimizer = HessianFree(layerwise(model), **parts(blocks=True, group=block_group, **options))
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.step(objective)
    assert optimizer.report is not None
    assert len(optimizer.report.cg_iterations) == len(optimizer.report.block_methods) == 4
    return flat(model)


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    group, found = dist.group.WORLD, {}
    for name, options in SETTINGS.items():
        found[f"data {name}"] = trained(SHARES[rank], process_group=group, **options)
        found[f"blocks {name}"] = trained(slice(None), block_group=group, **options)
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(tmp_path: Path):
    found = results_of_ranks(child, tmp_path, RANKS, TIMEOUT)
    for name, options in SETTINGS.items():
        alone = trained(slice(None), **options)
        for shared in ("data", "blocks"):
            first, second = (each[f"{shared} {name}"] for each in found)
            assert torch.equal(first, second), f"{shared} {name}"
            # Sums in another order differ by some 1e-16, which a few steps of conjugate gradients amplify.
            torch.testing.assert_close(first, alone, rtol=0, atol=1e-10, msg=f"{shared} {name}")
