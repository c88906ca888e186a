"""Terms shared out among ranks, unequally: the numbers of one process that has all points."""

from pathlib import Path

import torch
import torch.distributed as dist
from residual_cases import EDGE, INTERIOR, WEIGHTS, edge, edge_of_dict, network, poisson_by_transforms, uniform

from latephase import CG, KFAC, HessianFree, Objective
from latephase.curvature import linearize
from rank_processes import message_of, results_of_ranks

INSIDE = (slice(0, 2), slice(2, 9))
OUTSIDE = (slice(0, 4), slice(4, 4))
"""The second rank has no point at the edge."""
NEW = uniform(6, 2, seed=7)
NEW_SHARES = (slice(0, 0), slice(0, 6))
"""The first then has none inside, and the second those alone."""
OPTIMIZERS = {"hessian_free": lambda p: HessianFree(p, solver=CG(max_iter=8)), "kfac": KFAC}


def measured(objective: Objective) -> dict[str, torch.Tensor]:
    curved = linearize(objective)
    v = uniform(curved.space.size, seed=9)
    found = {"value": objective.value(), "loss": objective(), "gradient": curved.gradient, "product": curved.matvec(v)}
    return found | {f"term {name}": term for name, term in objective.terms().items()}


def parts(rank: int | None) -> tuple[Objective, Objective, torch.Tensor]:
    """An objective, one with other points inside, and what it is one of: all data, or a rank's."""
    inside, outside, new = (slice(None),) * 3 if rank is None else (INSIDE[rank], OUTSIDE[rank], NEW_SHARES[rank])
    terms = {"interior": (poisson_by_transforms, INTERIOR[inside]), "boundary": (edge, tuple(x[outside] for x in EDGE))}
    group = None if rank is None else dist.group.WORLD
    objective = Objective.from_residuals(
        network(), terms, weights=WEIGHTS, weight_decay=0.1, microbatch_size=2, process_group=group
    )
    return objective, objective.on({"interior": NEW[new]}), linearize(objective).rows()


def trained(rank: int | None, name: str) -> torch.Tensor:
    objective, *_ = parts(rank)
    optimizer = OPTIMIZERS[name](objective.model.parameters())
    return torch.stack([optimizer.step(objective).detach() for _ in range(2)])


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    objective, redrawn, rows = parts(rank)
    results = {"first": measured(objective), "second": measured(redrawn), "rows": rows}
    results |= {name: trained(rank, name) for name in OPTIMIZERS}
    group = dist.group.WORLD
    empty = {"a": (poisson_by_transforms, INTERIOR), "b": (edge, tuple(x[:0] for x in EDGE))}
    results["empty"] = message_of(lambda: Objective.from_residuals(network(), empty, process_group=group))
    bad = {"b": (edge_of_dict if rank == 1 else edge, EDGE)}  # which one rank alone gets wrong
    results["told"] = message_of(lambda: Objective.from_residuals(network(), bad, process_group=group))
    none = {"a": (poisson_by_transforms, INTERIOR[: 0 if rank == 1 else 4])}
    alone = Objective.from_residuals(network(), none, process_group=group)
    results["none"] = measured(alone) | {"rows": linearize(alone).rows(), "own": alone.points_of("a")}
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_have_the_numbers_of_one_process(tmp_path):
    found = results_of_ranks(child, tmp_path, 2, 200)
    objective, redrawn, rows = parts(None)
    close = {"rtol": 1e-11, "atol": 1e-11}
    steps = trained(None, "hessian_free")
    for each in found:
        for key, expected in (("first", measured(objective)), ("second", measured(redrawn))):
            for name, number in expected.items():
                torch.testing.assert_close(each[key][name], number, **close)
        torch.testing.assert_close(each["rows"], _by_rank(rows), **close)
        # Steps of conjugate gradients and of random signs for one output amplify rounding.
        torch.testing.assert_close(each["hessian_free"], steps, rtol=1e-7, atol=1e-9)
        assert each["kfac"][-1] < each["kfac"][0]
        assert "term 'b' has no points on any rank" in each["empty"]
    assert found[0]["kfac"].tolist() == found[1]["kfac"].tolist()
    assert found[1]["told"].startswith("TypeError")
    assert found[0]["told"].startswith("RankError")
    assert "rank 1 failed" in found[0]["told"]
    whole = Objective.from_residuals(network(), {"a": (poisson_by_transforms, INTERIOR[:4])})
    expected = measured(whole) | {"rows": linearize(whole).rows()}
    for each in found:
        for name, number in expected.items():
            torch.testing.assert_close(each["none"][name], number, **close)
    assert [len(each["none"]["own"]) for each in found] == [4, 0]


def _by_rank(rows: torch.Tensor) -> torch.Tensor:
    """Rows in the order of the ranks and in each of the terms."""
    inside, outside = rows[:9], rows[9:].view(4, 2, -1)
    each = [(inside[i], outside[o].flatten(0, 1)) for i, o in zip(INSIDE, OUTSIDE, strict=True)]
    return torch.cat([part for pair in each for part in pair])
