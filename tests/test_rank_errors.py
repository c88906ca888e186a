"""What one rank meets, all learn: no rank waits for one that failed, and none goes its own way unseen."""

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from latephase import CG, AdamQLR, Blocks, HessianFree, Objective, layerwise
from latephase.curvature import linearize
from latephase.objective.rank_traffic import note
from latephase.optim.kfac import KFAC
from rank_processes import message_of, results_of_ranks

pytestmark = pytest.mark.xdist_group("rank_errors")  # what all tests of this file stand on is made once

RANKS = 2
TIMEOUT = 240  # seconds for all of the children's work: some ten, and the import of torch twice
ALONE = dist.GroupMember.NON_GROUP_MEMBER
STEPS = 2
OPTIMIZERS: dict[str, Any] = {
    "hessian_free": lambda model, **_: HessianFree(model.parameters(), solver=CG(max_iter=4)),
    "blocks": lambda model, **_: HessianFree(layerwise(model), blocks=True, solver=CG(max_iter=4)),
    "block_group": lambda model, group: HessianFree(
        layerwise(model), blocks=Blocks(group=group), solver=CG(max_iter=4)
    ),
    "kfac": lambda model, **_: KFAC(model.parameters(), adapt_period=1),
    "adam_qlr": lambda model, **_: AdamQLR(model.parameters()),
}
OPTIONS: dict[str, tuple[Any, Any, str]] = {  # optimizer, two settings, what the error names
    "lr": (HessianFree, ({"lr": 1.0}, {"lr": 0.5}), "'lr' differs between ranks"),
    "cap": (HessianFree, ({"solver": {"max_iter": 4}}, {"solver": {"max_iter": 9}}), "'solver.max_iter' differs"),
    "factors": (HessianFree, ({}, {"damping": {"factors": (0.5, 2.0)}}), "'damping.factors' differs"),
    "preconditioner": (HessianFree, ({}, {"solver": {"preconditioner": "kfac"}}), "'solver.preconditioner' differs"),
    "momentum": (KFAC, ({}, {"momentum": 0.5}), "'momentum' differs"),
    "clip": (AdamQLR, ({}, {"lr_clip": 0.1}), "'lr_clip' differs"),
    "betas": (AdamQLR, ({}, {"betas": (0.5, 0.9)}), "'betas' differs"),
}


class Fails(nn.Module):
    """A network whose k-th forward pass raises."""

    def __init__(self, at: int = 0, error: BaseException | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        self.state = {"calls": 0, "at": at, "error": error}

    def forward(self, x):
        self.state["calls"] += 1
        if self.state["calls"] == self.state["at"]:
            raise self.state["error"]
        return self.layers(x)


def network() -> nn.Module:
    return Fails()


def data(rows: slice = slice(0, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    return x[rows], torch.randint(3, (16,), generator=generator)[rows]


def loss_of_all() -> float:
    x, y = data(slice(0, 16))
    return float(nn.CrossEntropyLoss()(network()(x), y).detach())


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def objective_of(model, rows, group, **options) -> Objective:
    return Objective(model, nn.CrossEntropyLoss(), data(rows), process_group=group, **options)


def interrupted(name: str, rank: int, at: int) -> tuple[list[str], torch.Tensor]:
    """Messages of steps of which one is interrupted on the second rank and taken again; where they lead."""
    group = dist.group.WORLD
    model = Fails(at if rank == 1 else 0, OSError("the disk is gone"))
    torch.manual_seed(5)
    optimizer = OPTIMIZERS[name](model, group=group)
    shared = name != "block_group"
    rows = (slice(0, 5), slice(5, 16))[rank] if shared else slice(0, 16)
    objective = objective_of(model, rows, group if shared else None)
    messages, taken = [], 0
    while taken < STEPS:
        message = message_of(lambda: optimizer.step(objective))
        taken += not message
        messages += [message] if message else []
        assert len(messages) < 3, messages
    return messages, torch.cat([flat(model), torch.tensor([model.state["calls"]], dtype=torch.float64)])


def every_pass(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in OPTIMIZERS:
        _, whole = interrupted(name, rank, 0)
        passes = whole[-1:].clone()
        dist.broadcast(passes, 1)
        tries = [interrupted(name, rank, at) for at in range(1, int(passes) + 1)]
        found[name] = {
            "messages": [messages for messages, _ in tries],
            "parameters": [vector[:-1] for _, vector in tries],
            "undisturbed": whole[:-1],
        }
    return found


def failing_preconditioner(rank: int, error: BaseException):
    calls = [0]

    def apply(r: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if rank == 1 and calls[0] == 3:
            raise error
        return r

    return apply


@contextlib.contextmanager
def interrupted_after_a_meeting():
    """Within, a KeyboardInterrupt comes once this rank has been waited for, before the numbers that are to be added."""

    def strike(frame, event, _):
        if event == "call" and frame.f_code is note.__code__:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(strike)
    yield
    sys.setprofile(None)


def elsewhere(rank: int) -> dict[str, Any]:
    """Failures beside a step's forward passes."""
    group, own, found = dist.group.WORLD, (slice(0, 5), slice(5, 16))[rank], {}
    for name, error in (("memory", torch.OutOfMemoryError("no memory")), ("interrupt", KeyboardInterrupt())):
        model = network()
        optimizer = HessianFree(model.parameters(), solver=CG(preconditioner=failing_preconditioner(rank, error)))
        found[name] = message_of(lambda o=optimizer, m=model: o.step(objective_of(m, own, group)))
    model = network()
    optimizer = HessianFree(
        layerwise(model),
        blocks=Blocks(group=group),
        solver=CG(preconditioner=failing_preconditioner(rank, ValueError("not definite"))),
    )
    found["solver of blocks"] = message_of(lambda: optimizer.step(objective_of(model, slice(0, 8), None)))
    for name, use in (("value", Objective.value), ("closure", Objective.__call__), ("linearize", linearize)):
        model = Fails(int(rank == 1), OSError("gone"))
        found[name] = message_of(lambda m=model, use=use: use(objective_of(m, own, group)))
        found[f"{name} after"] = float(objective_of(model, own, group).value())
    found["no batch"] = message_of(lambda: Objective(network(), nn.MSELoss(), [], process_group=group).value())
    model = network()
    with contextlib.ExitStack() as around:
        if rank == 1:
            around.enter_context(interrupted_after_a_meeting())
        found["between"] = message_of(objective_of(model, own, group))
    found["between after"] = float(objective_of(model, own, group).value())
    loss = None if rank == 1 else nn.CrossEntropyLoss()
    found["no loss"] = message_of(lambda: Objective(network(), loss, data(own), process_group=group).value())
    found["too few rows"] = message_of(lambda: objective_of(network(), own, group).split(6)[0].value())
    found["too few to draw"] = message_of(lambda: objective_of(network(), own, group).subsample(6).value())
    model = network()
    bad = {"solver": {"max_iter": 0}} if rank == 1 else {}
    optimizer = HessianFree(model.parameters())
    optimizer.param_groups[0].update(bad)
    found["bad option"] = message_of(lambda: optimizer.step(objective_of(model, own, group)))
    return found


def apart(rank: int) -> dict[str, Any]:
    """Ranks that are about to do different things."""
    group, own, found = dist.group.WORLD, (slice(0, 5), slice(5, 16))[rank], {}
    for name, (optimizer, settings, _) in OPTIONS.items():
        model = network()
        made = optimizer(model.parameters(), **settings[rank])
        found[name] = message_of(lambda o=made, m=model: o.step(objective_of(m, own, group)))
    model = network()
    optimizer = HessianFree(model.parameters(), solver=CG(max_iter=4))
    optimizer.step(objective_of(model, own, group))
    optimizer.param_groups[0]["lr"] *= 0.5 if rank == 1 else 1.0  # as a scheduler of one rank would do
    before = flat(model)
    found["lr later"] = message_of(lambda: optimizer.step(objective_of(model, own, group)))
    found["unmoved"] = torch.equal(flat(model), before)
    optimizer.param_groups[0]["lr"] = 1.0
    found["mended"] = message_of(lambda: optimizer.step(objective_of(model, own, group)))
    found["decay"] = message_of(
        lambda: HessianFree(model.parameters()).step(objective_of(model, own, group, weight_decay=0.1 * rank))
    )
    loss = nn.CrossEntropyLoss(reduction="mean", label_smoothing=0.1 * rank)
    smoothed = Objective(model, loss, data(own), process_group=group)
    found["loss"] = message_of(lambda: HessianFree(model.parameters()).step(smoothed))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0 + rank], dtype=torch.float64))
    weighed = Objective(model, loss, data(own), process_group=group)
    found["weights"] = message_of(lambda: HessianFree(model.parameters()).step(weighed))
    objective = objective_of(model, own, group)
    evaluation = objective_of(model, own, group) if rank == 1 else objective
    found["roles"] = message_of(lambda: HessianFree(model.parameters()).step(objective, evaluation))
    model = network().train(rank == 0)
    found["modes"] = message_of(lambda: HessianFree(model.parameters()).step(objective_of(model, own, group)))
    optimizer = HessianFree(model.train().parameters(), solver=CG(max_iter=4))
    optimizer.step(objective_of(model, own, group))
    if rank == 1:
        optimizer.damping = optimizer.damping  # of one rank alone, which then has a new start
    found["start"] = message_of(lambda: optimizer.step(objective_of(model, own, group)))
    found["start mended"] = message_of(lambda: optimizer.step(objective_of(model, own, group)))
    terms = {"all": (lambda model, x: model(x), data(own)[0])}
    squares = Objective.from_residuals(model, terms, weights={"all": 1.0 + rank}, process_group=group)
    found["terms"] = message_of(lambda: HessianFree(model.parameters()).step(squares))
    narrow = network().float() if rank == 1 else network()
    x, y = data(own)
    narrow_x = x.to(next(narrow.parameters()).dtype)
    found["narrow"] = message_of(Objective(narrow, nn.CrossEntropyLoss(), (narrow_x, y), process_group=group))
    model.get_submodule("layers.0").requires_grad_(rank == 0)
    found["frozen"] = message_of(lambda: HessianFree(model.parameters()).step(objective_of(model, own, group)))
    model = network()
    objective = objective_of(model, own, group)
    calls = objective.value if rank == 0 else objective
    found["calls"] = message_of(calls)
    chunks = objective_of(model, own, group, microbatch_size=2 if rank else 3)
    found["chunks"] = float(chunks.value())  # each cuts as it likes
    return found


def groups(rank: int) -> dict[str, Any]:
    """Groups that do not fit, and none."""
    group, own, found = dist.group.WORLD, (slice(0, 5), slice(5, 16))[rank], {}
    wrapped, model = DistributedDataParallel(network()), network()
    both = dist.new_group([0, 1])
    for name, shared, objective in (
        ("same group", group, objective_of(model, own, group)),
        ("same ranks", both, objective_of(model, own, group)),
        ("wrapped", group, objective_of(wrapped, own, None)),
    ):
        optimizer = HessianFree(layerwise(objective.model), blocks=Blocks(group=shared))
        found[name] = message_of(lambda o=optimizer, objective=objective: o.step(objective))
    optimizer = HessianFree(layerwise(model), blocks=Blocks(group=group))
    found["other data"] = message_of(lambda: optimizer.step(objective_of(model, own, None)))
    dropout = nn.Sequential(nn.Linear(3, 20), nn.Dropout(0.5), nn.Linear(20, 3)).double()
    for p in dropout.parameters():
        dist.broadcast(p.detach(), 0)
    torch.manual_seed(100 + rank)
    optimizer = HessianFree(layerwise(dropout), blocks=Blocks(group=group))
    found["dropout"] = message_of(lambda: optimizer.step(objective_of(dropout, slice(0, 8), None)))
    found["dropout parameters"] = flat(dropout)

    alone = {"plain": None, "meant": ALONE, "wrapped": group}
    for name, given in alone.items():
        for kind, make in (("hf", HessianFree), ("kfac", KFAC), ("qlr", AdamQLR)):
            model = network()
            optimizer = make(model.parameters())
            objective = objective_of(model, own, given)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimizer.step(objective)
                optimizer.step(objective.split(4)[0])
            texts = [str(each.message) for each in caught if "torch.distributed has" in str(each.message)]
            found[f"warned {name} {kind}"] = texts
            found[f"file {name} {kind}"] = [Path(each.filename).name for each in caught]
    found["free form"] = Objective.from_forward(model, unused, process_group=ALONE).alone
    found["free form, shared"] = message_of(lambda: Objective.from_forward(model, unused, process_group=group))
    found["no group"] = message_of(lambda: objective_of(model, own, 7))
    return found


def unused() -> Any:
    raise NotImplementedError


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    found: dict[str, Any] = {"passes": every_pass(rank), "elsewhere": elsewhere(rank), "apart": apart(rank)}
    found["groups"] = groups(rank)
    objective = objective_of(network(), slice(0, 8), dist.group.WORLD)
    if rank == 0:
        found["ended"] = message_of(objective.value)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return results_of_ranks(child, tmp_path_factory.mktemp("ranks"), RANKS, TIMEOUT)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_exception_at_any_pass_on_one_rank_reaches_the_others_and_the_step_can_be_taken_again(ranks, name):
    first, second = (found["passes"][name] for found in ranks)
    assert len(second["messages"]) >= 3
    for told, own in zip(first["messages"], second["messages"], strict=True):
        assert own == ["OSError: the disk is gone"]
        assert len(told) == 1
        assert told[0].startswith("RankError: rank 1 failed: OSError: the disk is gone"), told
    assert torch.equal(first["undisturbed"], second["undisturbed"])
    for found in (first, second):
        for vector in found["parameters"]:
            assert torch.equal(vector, found["undisturbed"])


@pytest.mark.parametrize(("case", "error"), [
    ("memory", "OutOfMemoryError: no memory"), ("interrupt", "KeyboardInterrupt: "),
    ("solver of blocks", "ValueError: not definite"), ("value", "OSError: gone"), ("closure", "OSError: gone"),
    ("linearize", "OSError: gone"), ("no loss", "TypeError: loss must be a callable"),
    ("between", "KeyboardInterrupt: "),
    ("bad option", "ValueError: CG.max_iter"),
])  # fmt: skip
def test_a_failure_of_the_second_rank_is_told_to_the_first(ranks, case, error):
    first, second = (found["elsewhere"][case] for found in ranks)
    assert second.startswith(error), second
    assert first.startswith(f"RankError: rank 1 failed: {error}"), first


@pytest.mark.parametrize("case", ["too few rows", "too few to draw"])
def test_a_failure_of_the_first_rank_is_told_to_the_second(ranks, case):
    first, second = (found["elsewhere"][case] for found in ranks)
    assert first.startswith("ValueError: cannot"), first
    assert second.startswith(f"RankError: rank 0 failed: {first}"), second


def test_a_rank_without_rows_is_told_how_to_say_so(ranks):
    assert all("gives a batch of none: (inputs[:0], targets[:0])" in found["elsewhere"]["no batch"] for found in ranks)


@pytest.mark.parametrize("case", ["value", "closure", "linearize", "between"])
def test_the_group_can_be_used_after_an_error(ranks, case):
    first, second = (found["elsewhere"][f"{case} after"] for found in ranks)
    assert first == second == pytest.approx(loss_of_all(), rel=1e-12)


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_differs_between_ranks_is_named_with_its_values(ranks, case):
    messages = [found["apart"][case] for found in ranks]
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"ValueError: {OPTIONS[case][2]}"), messages[0]
    assert "rank 0: " in messages[0]
    assert "rank 1: " in messages[0]


@pytest.mark.parametrize(("case", "name"), [
    ("lr later", "'lr'"), ("decay", "'weight_decay'"), ("loss", "'loss'"), ("weights", "'weight of the loss'"),
    ("roles", "'roles of the objectives'"), ("frozen", "'layers.0.weight'"), ("modes", "'modules in training mode'"),
    ("terms", "'weights of the terms'"),
])  # fmt: skip
def test_what_else_parts_the_ranks_is_named(ranks, case, name):
    messages = [found["apart"][case] for found in ranks]
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"ValueError: {name} differs between ranks"), messages[0]
    assert all(found["apart"]["unmoved"] and found["apart"]["mended"] == "" for found in ranks)


def test_a_rank_with_a_new_start_of_its_own_is_told_and_all_start_anew(ranks):
    for found in ranks:
        assert found["apart"]["start"].startswith("ValueError: 'new start (the first step")
        assert found["apart"]["start mended"] == ""


def test_numbers_of_different_dtypes_are_not_added_up(ranks):
    for found in ranks:
        assert found["apart"]["narrow"].startswith("RankError: the ranks do not do the same")
        assert "in float64" in found["apart"]["narrow"]
        assert "in float32" in found["apart"]["narrow"]


def test_ranks_that_call_different_methods_are_told(ranks):
    for found in ranks:
        assert found["apart"]["calls"].startswith("RankError: the ranks do not do the same: rank 0: the sum over")


def test_ranks_may_cut_their_data_differently(ranks):
    for found in ranks:
        assert found["apart"]["chunks"] == pytest.approx(loss_of_all(), rel=1e-12)


@pytest.mark.parametrize("case", ["same group", "same ranks", "wrapped"])
def test_ranks_do_not_share_both_data_and_blocks(ranks, case):
    assert all(found["groups"][case].startswith("ValueError: ranks 0, 1 are in block_group") for found in ranks)


def test_ranks_that_share_blocks_must_have_the_same_data(ranks):
    assert all("the ranks of block_group must hold the same data" in found["groups"]["other data"] for found in ranks)


def test_ranks_that_share_blocks_draw_the_same_random_numbers(ranks):
    assert all(found["groups"]["dropout"] == "" for found in ranks)
    assert torch.equal(ranks[0]["groups"]["dropout parameters"], ranks[1]["groups"]["dropout parameters"])


@pytest.mark.parametrize("kind", ["hf", "kfac", "qlr"])
def test_a_plain_module_on_several_ranks_is_noticed_once(ranks, kind):
    for found in (each["groups"] for each in ranks):
        (text,) = found[f"warned plain {kind}"]
        assert "process_group=torch.distributed.group.WORLD" in text
        assert "NON_GROUP_MEMBER" in text
        assert Path(__file__).name in found[f"file plain {kind}"]
        assert found[f"warned meant {kind}"] == found[f"warned wrapped {kind}"] == []


def test_a_function_of_its_own_form_says_that_it_is_alone(ranks):
    for found in (each["groups"] for each in ranks):
        assert found["free form"]
        assert found["free form, shared"].startswith("ValueError: from_forward works with neither")
        assert found["no group"].startswith("TypeError: process_group must be")


def test_a_rank_that_ended_is_told_from_one_that_is_late(ranks):
    assert ranks[0]["ended"].startswith("RankError: this rank (0) cannot reach the others")
