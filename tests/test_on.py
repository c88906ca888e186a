"""`Objective.on`: the same function of other data is the objective that would have been built anew, bit for bit."""

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from exact import bits
from latephase import KFAC, SGDQLR, AdamQLR, HessianFree, Objective
from latephase.curvature import linearize
from rank_processes import message_of, results_of_ranks

GENERATOR = torch.Generator().manual_seed(2)
X = torch.randn(24, 3, generator=GENERATOR)
Y = torch.randint(3, (24,), generator=GENERATOR)
Y[::5] = -100
PLAIN: dict[str, Any] = {"weight_decay": 0.01}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "predicate": {"weight_decay": (0.1, lambda name, p: p.dim() > 1)},
    "microbatches": {"microbatch_size": 5, **PLAIN},
    "auto": {"microbatch_size": "auto", "memory_limit": 1_000},
    "forward": {"forward": lambda model, inputs: 2 * model(inputs)},
    "memory": {"microbatch_size": 4, "memory_limit": 0},
}
OPTIMIZERS = {
    "hessian_free": lambda model: HessianFree(model.parameters(), damping=0.1),
    "adam_qlr": lambda model: AdamQLR(model.parameters()),
    "sgd_qlr": lambda model: SGDQLR(model.parameters()),
    "kfac": lambda model: KFAC(model.parameters()),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
}
SHARES = (slice(0, 4), slice(4, 11))


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3))


def batch(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    return X[start:stop], Y[start:stop]


def quantities(objective: Objective) -> Any:
    torch.manual_seed(7)
    found = [len(objective.chunks), objective.value(), objective(), objective.weights]
    curved = linearize(objective, method="double_backward")  # whatever shapes were traced before
    found += [p.grad for p in objective.model.parameters()]
    return bits([*found, curved.loss, curved.gradient, curved.matvec(torch.ones_like(curved.gradient))])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("data", ["one", "several"])
def test_loss_gradient_and_products_are_those_of_an_objective_built_anew(name, data):
    other = batch(9, 24) if data == "one" else [batch(3, 8), batch(8, 10), batch(10, 24)]
    first = Objective(network(), nn.CrossEntropyLoss(), batch(0, 9), **OPTIONS[name])
    quantities(first)  # so that everything that an objective keeps is there to be carried over by mistake
    fresh = Objective(network(), nn.CrossEntropyLoss(), other, **OPTIONS[name])
    assert quantities(first.on(other)) == quantities(fresh)
    if name == "auto":
        assert len(first.on(other).chunks) > len(other if data == "several" else [other])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_steps_are_those_with_objectives_built_anew(name, dropout):
    def trained(by_on: bool) -> Any:
        model = network(dropout)
        optimizer = OPTIMIZERS[name](model)
        first = Objective(model, nn.CrossEntropyLoss(), batch(0, 8), **PLAIN)
        torch.manual_seed(3)
        losses = []
        for start in (0, 8, 16, 4):
            data = batch(start, start + 8)
            losses.append(
                optimizer.step(first.on(data) if by_on else Objective(model, first.program.loss, data, **PLAIN))
            )
        return bits([losses, list(model.parameters()), torch.get_rng_state()])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert trained(True) == trained(False)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    cuts=st.sets(st.integers(1, 23), max_size=4),
    size=st.sampled_from([None, 1, 2, 7, 24]),
    before=st.integers(1, 24),
    order=st.permutations(range(24)),
)
def test_any_shapes_of_batches(cuts, size, before, order):
    edges = [0, *sorted(cuts), 24]
    data = [(X[order[i:j]], Y[order[i:j]].abs() % 3) for i, j in itertools.pairwise(edges)]
    model, loss = network(), nn.CrossEntropyLoss()
    base = Objective(model, loss, batch(0, before), microbatch_size=size)
    _ = base.weights if before > 1 else None
    assert quantities(base.on(data).on(data[0])) == quantities(Objective(model, loss, data[0], microbatch_size=size))
    assert quantities(base.on(data)) == quantities(Objective(model, loss, data, microbatch_size=size))


def test_the_first_objective_stays_as_it_is():
    first = Objective(network(), nn.CrossEntropyLoss(), batch(0, 9), microbatch_size=4)
    before = quantities(first)
    first.reseed()
    seed = first.seed
    other = first.on(batch(9, 24))
    assert other.seed is None
    quantities(other)
    assert first.seed == seed
    assert quantities(first) == before


def test_what_several_chunks_forbid_is_allowed_again_of_one():
    """Targets that are broadcast over the outputs tie the examples together, which only a whole batch may."""
    model = nn.Linear(3, 1)
    first = Objective(model, nn.MSELoss(), [(X[:4], X[:4, :1]), (X[4:9], X[4:9, :1])])
    first.value()
    with pytest.warns(UserWarning, match="broadcast"):
        found = first.on((X[:6], X[:6, 0])).value()
    with pytest.warns(UserWarning, match="broadcast"):
        assert torch.equal(found, nn.MSELoss()(model(X[:6]), X[:6, 0]).detach())


def test_a_model_that_was_changed_in_between_is_read_anew():
    model = network()
    first = Objective(model, nn.CrossEntropyLoss(), batch(0, 9))
    first.value()
    model[3] = nn.Linear(6, 3, bias=False)
    fresh = Objective(model, nn.CrossEntropyLoss(), batch(9, 24))
    assert quantities(first.on(batch(9, 24))) == quantities(fresh)


def test_what_the_data_is_refused_for_is_what_the_constructor_refuses_it_for():
    first = Objective(network(), nn.CrossEntropyLoss(), batch(0, 9))
    for bad in (X, [], (X, Y.numpy()), (X[:0], Y[:0]), [batch(0, 3), (X, Y[:3])]):
        anew = message_of(lambda bad=bad: Objective(network(), nn.CrossEntropyLoss(), bad))
        assert anew
        assert message_of(lambda bad=bad: first.on(bad)) == anew


def test_from_forward_says_why_it_has_no_other_data():
    model = nn.Linear(3, 1)
    first = Objective.from_forward(model, lambda: (model(X).square().mean(), model(X)))
    with pytest.raises(ValueError, match="from_forward has no data to exchange"):
        first.on(batch(0, 3))


def test_split_and_subsample_of_it():
    first = Objective(network(), nn.CrossEntropyLoss(), batch(0, 9), **PLAIN)
    fresh = Objective(network(), nn.CrossEntropyLoss(), batch(4, 10), **PLAIN)
    assert quantities(first.on(batch(4, 20)).split(6, 3)[0]) == quantities(fresh)


def own_loss(outputs, targets):
    """Of targets in a dict, or none."""
    return (
        outputs.square().mean() if targets is None else (outputs - targets["real"]).square().mean() * targets["scale"]
    )


TREES = {
    "none": ((X, None), own_loss),
    "dict": ((X, {"real": X, "scale": torch.tensor(2.0)}), own_loss),
    "tuple": ((X, (X, 2 * X)), lambda outputs, targets: (outputs - targets[0] - targets[1]).square().mean()),
    "tuples": ([((X, 2 * X), (X, X))], lambda outputs, targets: (outputs - targets[0]).square().mean()),
}


@pytest.mark.parametrize("name", TREES)
def test_targets_are_whatever_the_loss_takes(name):
    data, loss = TREES[name]
    model = network()

    def forward(model, inputs):
        return model(inputs[0]) if isinstance(inputs, tuple) else model(inputs)

    setattr(loss, "reduction", "mean")  # noqa: B010
    (inputs, targets) = data[0] if isinstance(data, list) else data
    expected = loss(forward(model, inputs), targets).detach()
    objective = Objective(model, loss, batch(0, 4) if name == "none" else data, forward=forward).on(data)
    torch.testing.assert_close(objective.value(), expected)
    pieces = Objective(model, loss, data, forward=forward, microbatch_size=7)
    assert len(pieces.chunks) == 4
    torch.testing.assert_close(pieces.value(), expected)
    optimizer = HessianFree(model.parameters(), damping=0.1)
    for _ in range(2):
        optimizer.step(pieces)
    assert optimizer.report.accepted
    optimizer.step(objective.subsample(5))


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    own = batch(SHARES[rank].start, SHARES[rank].stop)
    first = Objective(network(), nn.CrossEntropyLoss(), own, process_group=dist.group.WORLD, **PLAIN)
    first()
    other = first.on([batch(12 + rank, 15 + 2 * rank), batch(20, 24)])
    wrapped = Objective(DistributedDataParallel(network()), nn.CrossEntropyLoss(), own, **PLAIN)
    results: dict[str, Any] = {
        "quantities": [other.value(), *(p.clone() for p in (linearize(other).gradient,))],
        "wrapped": wrapped.on(batch(12 + rank, 15 + 2 * rank)).value(),
        "bad": message_of(lambda: first.on(X if rank else own).value()),
    }
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks(tmp_path):
    found = results_of_ranks(child, tmp_path, 2, 120)
    parts = [batch(12, 15), batch(20, 24), batch(13, 17), batch(20, 24)]
    alone = Objective(network(), nn.CrossEntropyLoss(), parts, **PLAIN)
    for each in found:
        torch.testing.assert_close(each["quantities"], [alone.value(), linearize(alone).gradient])
        torch.testing.assert_close(each["wrapped"], alone.on([parts[0], parts[2]]).value())
    assert found[1]["bad"].startswith("TypeError: data must be a pair")
    assert found[0]["bad"].startswith("RankError: rank 1 failed: TypeError")
