"""Ranks with unequal shares of the data, one of them without any, take the steps of one process that has all of it."""

import functools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from latephase import Objective
from latephase.curvature import linearize
from rank_cases import EVEN, OPTIMIZERS, ROWS, SHARES, data, flat, network, objective_of, trained
from rank_processes import results_of_ranks

FEW = 3
STEPS = 20
MAIN = ("hessian_free", "gauss_newton", "spring", "kfac", "adam_qlr", "broyden")
"""On five ranks, which wait for each other most of the time."""
TIMEOUT = 900  # seconds, of which a busy machine needs many


def child(rank: int, folder: str, count: int, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    group, found = dist.group.WORLD, {}
    for name in OPTIMIZERS if count < max(SHARES) else MAIN:
        both = steps == STEPS and count < max(SHARES)
        for wrapped in (False, True) if both else (name == "hessian_free",):
            found[f"{name} {wrapped}"] = trained(name, SHARES[count][rank], group, wrapped, steps)
        if count in EVEN and steps == STEPS:
            found[f"{name} where all have rows"] = trained(name, EVEN[count][rank], group, False, steps)
    found |= looked_at(SHARES[count][rank], group)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def looked_at(rows: slice, group) -> dict[str, torch.Tensor]:
    """What else is put together over ranks, and parts of the data; batch norm's statistics, in which ranks differ."""
    objective = objective_of(network(), rows, group)
    curved = linearize(objective)
    found = {"rows": curved.rows(), "kernel": curved.row_kernel(), "gram": curved.gram()[0]}
    found["count"], found["residual"] = torch.tensor(curved.row_count()), curved.residual()
    loss = objective()
    found |= {"value": objective.value(), "closure": loss, "own": torch.tensor(objective.own_rows)}
    found["gradient"] = torch.cat([p.grad.reshape(-1) for p in objective.model.parameters()])
    summed = Objective(network(), nn.MSELoss(reduction="sum"), data(rows), microbatch_size=3, process_group=group)
    found["sum"] = linearize(summed).matvec(torch.ones(summed.space().size, dtype=torch.float64))
    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    Objective(norm, nn.MSELoss(), data(rows), process_group=group)()
    found["moved"] = norm[1].running_mean.abs().sum() > 0
    return found


def compared(found: list[dict[str, torch.Tensor]], steps: int, at_most: float) -> None:
    """Raise an AssertionError where ranks differ by a bit, or from one process by more than rounding."""
    alone = {name: trained(name, slice(0, ROWS), None, False, steps) for name in OPTIMIZERS}
    for key in (key for key in found[0] if " " in key):
        for each in found:
            assert torch.equal(each[key], found[0][key]), key
            torch.testing.assert_close(each[key], alone[key.split()[0]], rtol=at_most, atol=at_most, msg=key)
            assert (each[key][-1] - flat(network())).abs().max() > 1e-3, key
    whole = looked_at(slice(0, ROWS), None)
    for key in set(whole) - {"own", "moved"}:
        for each in found:
            torch.testing.assert_close(each[key], whole[key], rtol=1e-11, atol=1e-13, msg=key)
    assert all(bool(each["moved"]) == bool(each["own"]) for each in found)
    assert sum(int(each["own"]) for each in found) == ROWS


def test_two_ranks_of_which_one_has_no_rows_are_one_process(tmp_path):
    found = results_of_ranks(functools.partial(child, count=2, steps=FEW), tmp_path, 2, TIMEOUT)
    compared(found, FEW, 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("count", SHARES)
def test_twenty_steps_are_those_of_one_process(count, tmp_path):
    found = results_of_ranks(functools.partial(child, count=count, steps=STEPS), tmp_path, count, TIMEOUT)
    compared(found, STEPS, 1e-10)
