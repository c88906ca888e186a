"""Points shared out among ranks: each draws its own, and residuals are those of all."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from residual_cases import EDGE, INTERIOR, WEIGHTS, edge, network, poisson

from latephase import RAD, Box, GaussNewton, Objective, Points
from rank_processes import message_of, results_of_ranks

SHARES = (slice(0, 2), slice(2, 9))
SQUARE = Box((0.0, 0.0), (1.0, 1.0))


def bad_on_one(n: int, generator: torch.Generator) -> torch.Tensor:
    return SQUARE(n - dist.get_rank(), generator)


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    # The second rank has no point at the edge.
    terms = {"interior": (poisson, INTERIOR[SHARES[rank]]), "boundary": (edge, tuple(x[: 4 - 4 * rank] for x in EDGE))}
    model = network()
    objective = Objective.from_residuals(model, terms, weights=WEIGHTS, process_group=dist.group.WORLD)
    torch.manual_seed(rank)  # the seed is the first rank's all the same
    points = Points(objective, {"interior": SQUARE}, every=1, watch=2, adaptive=RAD(), held_out=51, warn_above=1e9)
    optimizer = GaussNewton(model.parameters())
    losses = torch.stack([optimizer.step(points.next()).detach() for _ in range(4)])
    report = points.measure()
    state = points.state_dict()
    told = message_of(lambda: Points(objective, {"interior": bad_on_one}, held_out=0).redraw())
    other = message_of(lambda: points.load_state_dict(state | {"ranks": [1 - rank, 2]}))
    first = Points(objective, {"interior": SQUARE}, seed=5, held_out=10)
    unlike = message_of(lambda: Points(objective, {"interior": SQUARE}, every=1 + rank))
    none = message_of(lambda: Points(objective, {"interior": SQUARE}, every=rank))
    results = {"losses": losses, "report": report.as_dict(), "state": state, "told": told, "other": other}
    results |= {"unlike": unlike, "none": none}
    results["streams"] = torch.cat([first._held["interior"], first.redraw().points_of("interior")])
    results["parameters"] = [p.detach() for p in model.parameters()]
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_draw_their_own_points_and_measure_together(tmp_path):
    first, second = results_of_ranks(child, tmp_path, 2, 300)
    assert first["report"] == second["report"]
    assert first["losses"].equal(second["losses"])
    own = [each["state"]["points"]["interior"] for each in (first, second)]
    held = [each["state"]["held_out"]["interior"] for each in (first, second)]
    assert [len(each) for each in own] == [2, 7]
    assert [len(each) for each in held] == [26, 26]
    assert len(torch.cat([*own, *held]).unique(dim=0)) == 2 + 7 + 52
    assert len(torch.cat([first["streams"], second["streams"]]).unique(dim=0)) == 9 + 10
    model = network()
    with torch.no_grad():
        for p, trained in zip(model.parameters(), first["parameters"], strict=True):
            p.copy_(trained)
    terms = {"interior": (poisson, torch.cat(own)), "boundary": (edge, EDGE)}
    whole = Objective.from_residuals(model, terms, weights=WEIGHTS)
    expected = {name: float(value) for name, value in whole.terms().items()}
    apart = {name: float(value) for name, value in whole.on({"interior": torch.cat(held)}).terms().items()}
    # Sums of some dozen float64 terms, in two parts.
    assert first["report"]["terms"] == pytest.approx(expected, rel=1e-12)
    assert first["report"]["held_out_terms"]["interior"] == pytest.approx(apart["interior"], rel=1e-12)
    assert first["report"]["held_out"] == pytest.approx(sum(WEIGHTS[name] * x for name, x in apart.items()), rel=1e-12)
    for each in (first, second):
        assert "every of Points" in each["unlike"]
        assert "every of Points must be at least 1, got 0" in each["none"]
    assert "RankError" in first["told"]
    assert "drawer of term 'interior' gives 6 points where 7 were asked for" in first["told"]
    assert second["told"].startswith("ValueError: the drawer of term 'interior' gives 6 points")
    assert "the state is of rank 1 of 2, this is rank 0 of 2" in first["other"]
