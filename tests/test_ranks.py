"""Two processes that share the data are one process that has it all."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flat_parts import parts
from latephase import HessianFree, Objective, layerwise
from latephase.curvature import linearize
from rank_processes import message_of, results_of_ranks

pytestmark = pytest.mark.xdist_group("ranks")  # what all tests of this file stand on is made once

RANKS = 2
SHARES = (slice(0, 5), slice(5, 16))  # unequal
TIMEOUT = 150  # seconds for all of the children's work: some three, and the import of torch twice
SETTING = {"damping": 1.0, "max_iter": 8}
"""Conjugate gradients stop before they have converged: candidates that differ by rounding alone would tie by chance."""
WEIGHT = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def data(rows: slice = slice(0, 16), seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (16,), generator=generator)
    y[[2, 3, 9]] = -100
    return x[rows], y[rows]


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def objective_of(model, rows, group=None, **options):
    loss = nn.CrossEntropyLoss(weight=WEIGHT)
    return Objective(model, loss, data(rows), weight_decay=0.01, process_group=group, **options)


def quantities(objective) -> dict[str, torch.Tensor]:
    """Value, closure, gradient, products and quadratic form, of GGN and Hessian."""
    loss = objective()
    found = {"value": objective.value(), "loss": loss}
    found["grad"] = torch.cat([p.grad.reshape(-1) for p in objective.model.parameters()])
    v = torch.linspace(-1, 1, 31, dtype=torch.float64)
    for curvature in ("ggn", "hessian"):
        linear = linearize(objective, curvature)
        found |= {f"{curvature}_loss": linear.loss, f"{curvature}_gradient": linear.gradient}
        found |= {f"{curvature}_product": linear.matvec(v), f"{curvature}_form": linear.quadratic_form(v)}
    return found


def steps(model, rows, group, seed_of_evaluation=3, **options) -> dict[str, Any]:
    """Five steps with a held-out evaluation objective; the reports, parameters and the damping."""
    optimizer = HessianFree(layerwise(model), **parts(**SETTING, **options))
    loss = nn.CrossEntropyLoss(weight=WEIGHT)
    evaluation = Objective(model, loss, data(rows, seed_of_evaluation), process_group=group)
    objective, reports = objective_of(model, rows, group), []
    for _ in range(5):
        optimizer.step(objective, evaluation, objective_of(model, slice(rows.start, rows.stop - 1), group))
        reports.append(optimizer.report.as_dict() | {"seconds": 0.0})
    return {"parameters": flat(model), "damping": optimizer.damping, "reports": reports}


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    group, own = dist.group.WORLD, SHARES[rank]
    results: dict[str, Any] = {}
    torch.manual_seed(100 + rank)
    results["whole"] = quantities(objective_of(network(), own, group))
    results["chunks"] = quantities(objective_of(network(), own, group, microbatch_size=3))
    results["sum"] = Objective(network(), nn.MSELoss(reduction="sum"), (data(own)[0],) * 2, process_group=group).value()
    wrapped = DistributedDataParallel(network())
    results["wrapped"] = quantities(objective_of(wrapped, own))
    for name, options in (("full", {}), ("blocks", {"blocks": True}), ("hessian", {"curvature": "hessian"})):
        results[name] = steps(network(), own, group, **options)

    dropout = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double()
    for p in dropout.parameters():
        dist.broadcast(p.detach(), 0)
    optimizer, objective = HessianFree(dropout.parameters()), objective_of(dropout, own, group)
    for _ in range(3):
        optimizer.step(objective)
        assert abs(float(objective.value()) - optimizer.report.new_loss) < 1e-12
    results["dropout"] = flat(dropout)

    model = network()
    with torch.no_grad():
        model[2].weight += 1e-3 * rank
    results["different"] = message_of(lambda: HessianFree(model.parameters()).step(objective_of(model, own, group)))
    model = network()
    with torch.no_grad():
        model[2].weight.copy_(model[2].weight.flip(0) if rank else model[2].weight)  # the same sum and norm
    results["permuted"] = message_of(lambda: HessianFree(model.parameters()).step(objective_of(model, own, group)))
    model = nn.Linear(3, 3 + rank).double()
    results["shapes"] = message_of(lambda: HessianFree(model.parameters()).step(objective_of(model, own, group)))

    # The state of an optimizer that was loaded on one rank only.
    model = network()
    trained, fresh = HessianFree(model.parameters()), HessianFree(model.parameters())
    trained.step(objective_of(model, own, group))
    if rank == 0:
        fresh.load_state_dict(trained.state_dict())
    results["start"] = message_of(lambda: fresh.step(objective_of(model, own, group)))
    trained.damping = 1.0 + rank
    results["damping"] = message_of(lambda: trained.step(objective_of(model, own, group)))

    model, (x, y) = network(), data(own)
    x = x.clone()
    x[2, 1] = float("nan") if rank == 1 else 0.0
    optimizer, before = HessianFree(model.parameters()), flat(model)
    bad = Objective(model, nn.CrossEntropyLoss(), (x, y), process_group=group)
    results["nan"] = message_of(lambda: optimizer.step(bad))
    results["nan_evaluation"] = message_of(lambda: optimizer.step(objective_of(model, own, group), bad))
    results["untouched"] = torch.equal(flat(model), before)
    optimizer.step(objective_of(model, own, group))
    results["afterwards"] = optimizer.report.accepted

    # Objectives of which one is shared out and the other is not would judge the step by numbers of one rank alone.
    lone = objective_of(model, own)
    results["mixed"] = message_of(lambda: HessianFree(model.parameters()).step(objective_of(model, own, group), lone))
    results["hidden"] = message_of(
        lambda: Objective(network(), lambda z, t: z.mean(), data(own), process_group=group).value()
    )
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return results_of_ranks(child, tmp_path_factory.mktemp("ranks"), RANKS, TIMEOUT)


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    """The same quantities in one process with all the data."""
    return quantities(objective_of(network(), slice(0, 16)))


@pytest.mark.parametrize("how", ["whole", "chunks", "wrapped"])
def test_loss_gradient_and_products_are_those_of_all_the_data(ranks, alone, how):
    for found in ranks:
        assert found[how].keys() == alone.keys()
        for name, expected in alone.items():
            torch.testing.assert_close(found[how][name], expected, rtol=1e-10, atol=1e-12, msg=name)


def test_a_sum_over_examples_is_a_sum_over_ranks(ranks):
    x, _ = data()
    expected = nn.MSELoss(reduction="sum")(network()(x), x).detach()
    for found in ranks:
        torch.testing.assert_close(found["sum"], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["full", "blocks", "hessian"])
def test_steps_are_bit_identical_across_ranks(ranks, name):
    first, second = (found[name] for found in ranks)
    assert torch.equal(first["parameters"], second["parameters"])
    assert first["reports"] == second["reports"]
    assert first["damping"] == second["damping"]
    assert sum(report["accepted"] for report in first["reports"]) >= 3


@pytest.mark.parametrize(("name", "options"), [
    ("full", {}), ("blocks", {"blocks": True}), ("hessian", {"curvature": "hessian"}),
])  # fmt: skip
def test_steps_are_those_of_one_process(ranks, name, options):
    """The curvature objective leaves the last row of each share out."""
    model = network()
    optimizer = HessianFree(layerwise(model), **parts(**SETTING, **options))
    kept = [row for share in SHARES for row in range(share.start, share.stop - 1)]
    x, y = data()
    loss = nn.CrossEntropyLoss(weight=WEIGHT)
    evaluation = Objective(model, loss, data(seed=3))
    curvature = Objective(model, loss, (x[kept], y[kept]), weight_decay=0.01)
    for report in ranks[0][name]["reports"]:
        optimizer.step(objective_of(model, slice(0, 16)), evaluation, curvature)
        assert optimizer.report.accepted == report["accepted"]
        assert optimizer.report.collectives is None
        assert "collectives" not in optimizer.report.as_dict()
        assert report["collective_bytes"] > 128 * report["collectives"] / 2 > 0
        assert list(optimizer.report.cg_iterations) == report["cg_iterations"]
        assert optimizer.report.reduction_ratio == pytest.approx(report["reduction_ratio"], rel=1e-6)
    torch.testing.assert_close(ranks[0][name]["parameters"], flat(model), rtol=1e-9, atol=1e-9)
    assert ranks[0][name]["damping"] == optimizer.damping


def test_ranks_stay_together_with_dropout(ranks):
    assert torch.equal(ranks[0]["dropout"], ranks[1]["dropout"])


@pytest.mark.parametrize("case", ["different", "permuted", "shapes"])
def test_parameters_that_differ_between_ranks_are_named_on_every_rank(ranks, case):
    name = "'weight'" if case == "shapes" else "'2.weight'"
    for found in ranks:
        assert found[case].startswith("ValueError"), found[case]
        assert name in found[case]


@pytest.mark.parametrize(("case", "names"), [
    ("start", ("damping", "start of conjugate gradients")), ("damping", ("damping",)),
])  # fmt: skip
def test_optimizer_state_that_differs_between_ranks_is_named_on_every_rank(ranks, case, names):
    for found in ranks:
        assert found[case].startswith(f"ValueError: '{names[0]}' differs"), found[case]
        assert all(repr(name) in found[case] for name in names), found[case]


def test_objectives_of_one_step_share_their_ranks(ranks):
    assert all(found["mixed"].startswith("ValueError") for found in ranks)


@pytest.mark.parametrize("case", ["nan", "nan_evaluation"])
def test_data_that_is_not_finite_on_one_rank_raises_on_every_rank(ranks, case):
    first, second = (found[case] for found in ranks)
    assert first.startswith("ValueError")
    assert "another rank" in first
    assert "inputs of chunk 0" in second
    assert "row 2" in second
    assert all(found["untouched"] and found["afterwards"] for found in ranks)


def test_the_reduction_is_asked_for_with_several_ranks(ranks):
    assert all(found["hidden"].startswith("ValueError") and "reduction" in found["hidden"] for found in ranks)
