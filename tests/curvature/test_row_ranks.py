"""Rows J~ over several processes: those of one process that has all the data."""

import functools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from product_cases import CASES, REALS, VECTORS
from row_cases import Centred, Minus
from torch import nn

from latephase import Objective
from latephase.curvature import linearize
from rank_processes import message_of, results_of_ranks

ROWS = len(VECTORS)
SHARES = {1: (slice(0, ROWS),), 2: (slice(0, 2), slice(2, ROWS)), 3: (slice(0, 1), slice(1, 3), slice(3, ROWS))}
CASES_OF_RANKS = ("cross_entropy_ignore_weights", "squared_error")


def child(rank: int, folder: str, count: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    share, results = SHARES[count][rank], {}
    for name in CASES_OF_RANKS:
        case = CASES[name]
        for size in (None, 2):
            objective = Objective(
                case.model(), case.loss, case.rows(share.start, share.stop), process_group=dist.group.WORLD,
                microbatch_size=size,
            )  # fmt: skip
            curved = linearize(objective)
            results[f"{name}{size}"] = curved.rows()
            results[f"own {name}{size}"] = torch.cat(list(curved.row_pieces(2)))
    mixed = Centred(Minus() if rank == count - 1 else nn.Identity()).double()
    with torch.no_grad():
        for p in mixed.parameters():
            p.fill_(0.5)
    objective = Objective(mixed, nn.MSELoss(), (VECTORS[:5], REALS[:5]), process_group=dist.group.WORLD)
    results["mixed"] = message_of(lambda: linearize(objective).rows())
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in SHARES if n != 2)])
def test_ranks_have_all_rows_and_pieces_are_a_ranks_own(count, tmp_path):
    found = results_of_ranks(functools.partial(child, count=count), tmp_path, count, 200)
    for name in CASES_OF_RANKS:
        case = CASES[name]
        expected = linearize(Objective(case.model(), case.loss, (case.inputs, case.targets))).rows()
        for size in (None, 2):
            key = f"{name}{size}"
            for each in found:
                torch.testing.assert_close(each[key], expected, rtol=1e-11, atol=1e-13)
            torch.testing.assert_close(
                torch.cat([each[f"own {key}"] for each in found]), expected, rtol=1e-11, atol=1e-13
            )
    assert found[-1]["mixed"].startswith("ValueError: the model's outputs for an example depend on other examples")
    assert all(each["mixed"].startswith(f"RankError: rank {count - 1} failed: ValueError") for each in found[:-1])
