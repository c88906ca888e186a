"""Chunks: any cut of the data is the same function; reading data, splitting and drawing rows."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from latephase import Objective
from latephase.objective.data import read_chunks
from latephase.objective.reduction import loss_normalizer, loss_reduction

EXACT = {"rtol": 1e-12, "atol": 1e-14}  # float64: the same sums in another order
ROWS, CLASSES, LENGTH = 12, 3, 4
GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(ROWS, 3, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(CLASSES, (ROWS,), generator=GENERATOR)
SOME = torch.where(torch.arange(ROWS) % 4 == 1, -100, LABELS)  # ignored rows, unevenly over the chunks
SEQUENCES = torch.randint(CLASSES, (ROWS, LENGTH), generator=GENERATOR)
REALS = torch.randn(ROWS, CLASSES, generator=GENERATOR, dtype=torch.float64)
SHARES = torch.softmax(REALS, 1)
WEIGHT = torch.tensor([0.2, 1.0, 3.5], dtype=torch.float64)


def squares(outputs, targets):
    return (outputs - targets).square().sum(1).mean()


def absolutes(outputs, targets):
    return (outputs - targets).abs().sum()


setattr(squares, "reduction", "mean")  # noqa: B010
setattr(absolutes, "reduction", "sum")  # noqa: B010

LOSSES = {
    "cross_entropy": (nn.CrossEntropyLoss(), LABELS),
    "cross_entropy_sum": (nn.CrossEntropyLoss(reduction="sum"), LABELS),
    "cross_entropy_weights": (nn.CrossEntropyLoss(weight=WEIGHT), LABELS),
    "cross_entropy_ignored": (nn.CrossEntropyLoss(), SOME),
    "cross_entropy_ignored_class": (nn.CrossEntropyLoss(ignore_index=1), LABELS),
    "cross_entropy_smooth": (nn.CrossEntropyLoss(label_smoothing=0.2), SOME),
    "cross_entropy_all": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2, ignore_index=2), LABELS),
    "cross_entropy_shares": (nn.CrossEntropyLoss(label_smoothing=0.1), SHARES),
    "cross_entropy_shares_weights": (nn.CrossEntropyLoss(weight=WEIGHT), SHARES),
    "nll": (nn.NLLLoss(weight=WEIGHT), LABELS),
    "mse": (nn.MSELoss(), REALS),
    "mse_sum": (nn.MSELoss(reduction="sum"), REALS),
    "bce": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), SHARES),
    "huber": (nn.HuberLoss(), REALS),
    "smooth_l1": (nn.SmoothL1Loss(), REALS),
    "poisson": (nn.PoissonNLLLoss(), SHARES),
    "divergence": (nn.KLDivLoss(reduction="batchmean"), SHARES),
    "functional_mse": (F.mse_loss, REALS),
    "functional_cross_entropy": (F.cross_entropy, SOME),
    "partial": (functools.partial(F.cross_entropy, weight=WEIGHT, ignore_index=0, label_smoothing=0.1), LABELS),
    "partial_sum": (functools.partial(F.cross_entropy, reduction="sum"), LABELS),
    "partial_of_partial": (functools.partial(functools.partial(F.mse_loss, reduction="sum"), reduction="mean"), REALS),
    "custom_mean": (squares, REALS),
    "custom_sum": (absolutes, REALS),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()


def pieces(*tensors, sizes=(1, 5, 2, 4)):
    return list(zip(*(tensor.split(list(sizes)) for tensor in tensors), strict=True))


def result(objective) -> torch.Tensor:
    """Value, loss of the closure, and gradient, as one vector."""
    loss = objective()
    grads = [p.grad.reshape(-1) for p in objective.model.parameters()]
    return torch.cat([objective.value().reshape(1), loss.reshape(1), *grads])


@pytest.mark.parametrize("name", LOSSES)
def test_every_cut_of_the_data_is_the_same_function(name):
    loss, targets = LOSSES[name]
    model = network()
    plain = loss(model(X), targets)
    grads = [g.reshape(-1) for g in torch.autograd.grad(plain, list(model.parameters()))]
    expected = torch.cat([plain.detach().reshape(1)] * 2 + grads)
    batch = (X, targets)
    for data, size in [(batch, None), (pieces(*batch), None), (batch, 5), (batch, 1), (batch, 99), (pieces(*batch), 3)]:
        objective = Objective(model, loss, data, microbatch_size=size)
        torch.testing.assert_close(result(objective), expected, **EXACT)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_targets_for_every_position_of_a_sequence(weight):
    torch.manual_seed(0)
    model = nn.Linear(3, CLASSES * LENGTH).double()
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=2)

    def forward(model, inputs):
        return model(inputs).view(-1, CLASSES, LENGTH)

    whole = result(Objective(model, loss, (X, SEQUENCES), forward=forward))
    torch.testing.assert_close(whole[0], loss(forward(model, X), SEQUENCES).detach(), **EXACT)
    torch.testing.assert_close(result(Objective(model, loss, pieces(X, SEQUENCES), forward=forward)), whole, **EXACT)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    cuts=st.sets(st.integers(1, ROWS - 1)),
    size=st.one_of(st.none(), st.integers(1, ROWS)),
    name=st.sampled_from(["cross_entropy_all", "mse", "custom_sum"]),
    decay=st.sampled_from([0.0, 0.3]),
)
def test_chunk_sizes_do_not_matter(cuts, size, name, decay):
    loss, targets = LOSSES[name]
    edges = [0, *sorted(cuts), ROWS]
    data = pieces(X, targets, sizes=[stop - start for start, stop in itertools.pairwise(edges)])
    whole = result(Objective(network(), loss, (X, targets), weight_decay=decay))
    cut = result(Objective(network(), loss, data, microbatch_size=size, weight_decay=decay))
    torch.testing.assert_close(cut, whole, **EXACT)


@pytest.mark.parametrize("size", [1, 3])
def test_a_chunk_none_of_whose_targets_count_adds_nothing(size):
    targets = torch.where(torch.arange(ROWS) < 6, -100, LABELS)  # 0/0 in torch on the chunks of the first half
    whole = result(Objective(network(), nn.CrossEntropyLoss(), (X, targets)))
    assert whole.isfinite().all()
    cut = Objective(network(), nn.CrossEntropyLoss(), (X, targets), microbatch_size=size)
    torch.testing.assert_close(result(cut), whole, **EXACT)


def test_no_target_at_all_is_an_error():
    objective = Objective(network(), nn.CrossEntropyLoss(), pieces(X, torch.full_like(LABELS, -100)))
    with pytest.raises(ValueError, match="no target"):
        objective.value()


def test_a_loss_that_hides_its_reduction_works_on_one_batch_only():
    model = network()
    hidden = lambda outputs, targets: F.cross_entropy(outputs, targets)  # noqa: E731
    value = Objective(model, hidden, (X, LABELS)).value()
    torch.testing.assert_close(value, F.cross_entropy(model(X), LABELS).detach(), **EXACT)
    for objective in (
        Objective(model, hidden, (X, LABELS), microbatch_size=5),
        Objective(model, hidden, pieces(X, LABELS)),
    ):
        with pytest.raises(ValueError, match="reduction"):
            objective.value()
        with pytest.raises(ValueError, match="reduction"):
            objective()


@pytest.mark.parametrize("loss", [nn.MSELoss(reduction="none"), functools.partial(F.mse_loss, reduction="none")])
def test_reduction_none_is_an_error(loss):
    for size in (None, 5):
        with pytest.raises(ValueError, match="reduction"):
            Objective(network(), loss, (X, REALS), microbatch_size=size).value()


def test_normalizers_are_what_torch_divides_by():
    chunk = read_chunks((X, LABELS), None)[0]
    loss = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1)
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64)
    total = F.cross_entropy(logits, LABELS, weight=WEIGHT, ignore_index=1, reduction="sum")
    assert loss_normalizer(loss, chunk) == pytest.approx(float(total / loss(logits, LABELS)), rel=1e-12)
    assert loss_normalizer(nn.MSELoss(), read_chunks((X, REALS), None)[0]) == ROWS * CLASSES
    assert loss_normalizer(squares, read_chunks((X, REALS), None)[0]) == ROWS
    assert loss_reduction(nn.KLDivLoss(reduction="batchmean")) == "mean"
    assert loss_reduction(functools.partial(F.nll_loss, reduction="sum")) == "sum"


@pytest.mark.parametrize("batch_size", [5, ROWS])
def test_the_batches_of_a_loader_are_chunks(batch_size):
    loader = DataLoader(TensorDataset(X, LABELS), batch_size=batch_size)
    whole = result(Objective(network(), nn.CrossEntropyLoss(), (X, LABELS)))
    torch.testing.assert_close(result(Objective(network(), nn.CrossEntropyLoss(), list(loader))), whole, **EXACT)
    first = next(iter(loader))  # a list of two tensors: one batch
    assert len(Objective(network(), nn.CrossEntropyLoss(), first).chunks) == 1
    with pytest.raises(TypeError, match=r"list\(loader\)"):
        Objective(network(), nn.CrossEntropyLoss(), loader)


def rows_of(objective) -> list[float]:
    return torch.cat([chunk.inputs[:, 0] for chunk in objective.chunks]).tolist()


@pytest.mark.parametrize("data", [(X, LABELS), pieces(X, LABELS)], ids=["batch", "chunks"])
@pytest.mark.parametrize("size", [None, 2])
def test_split_gives_disjoint_parts_in_order(data, size):
    model, loss = network(), nn.CrossEntropyLoss(weight=WEIGHT)
    whole = Objective(model, loss, data, microbatch_size=size, weight_decay=0.1)
    parts = whole.split(4, 1, 6)
    assert [rows_of(part) for part in parts] == [X[a:b, 0].tolist() for a, b in [(0, 4), (4, 5), (5, 11)]]
    for part, (a, b) in zip(parts, [(0, 4), (4, 5), (5, 11)], strict=True):
        expected = Objective(model, loss, (X[a:b], LABELS[a:b]), weight_decay=0.1)
        torch.testing.assert_close(part.value(), expected.value(), **EXACT)
        assert part.model is model
        assert size is None or max(chunk.rows for chunk in part.chunks) <= size
    (everything,) = whole.split(ROWS)
    assert rows_of(everything) == X[:, 0].tolist()


@pytest.mark.parametrize("data", [(X, LABELS), pieces(X, LABELS)], ids=["batch", "chunks"])
def test_subsample_draws_without_replacement_by_the_generator(data):
    whole = Objective(network(), nn.CrossEntropyLoss(), data)
    state = torch.get_rng_state()
    draws = [whole.subsample(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = map(rows_of, draws)
    assert first == again != other
    assert len(set(first)) == 5
    assert set(first) <= set(X[:, 0].tolist())
    inputs = torch.cat([chunk.inputs for chunk in draws[0].chunks])
    targets = torch.cat([chunk.targets for chunk in draws[0].chunks])
    for row, label in zip(inputs, targets, strict=True):
        assert LABELS[(row == X).all(1)].tolist() == [int(label)]
    assert sorted(rows_of(whole.subsample(ROWS))) == sorted(X[:, 0].tolist())


def test_draws_are_uniform():
    objective = Objective(nn.Linear(1, 1), nn.MSELoss(), [(torch.arange(4.0)[:, None], torch.zeros(4, 1))])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(2000):
        counts[[int(row) for row in rows_of(objective.subsample(1, generator))]] += 1
    assert (counts - 500).abs().max() < 4 * (2000 * 0.25 * 0.75) ** 0.5  # four standard deviations


@pytest.mark.parametrize("sizes", [(0,), (-1, 3), (13,), (6, 7)])
def test_sizes_that_do_not_fit_are_errors(sizes):
    objective = Objective(network(), nn.CrossEntropyLoss(), (X, LABELS))
    with pytest.raises(ValueError, match="12 rows"):
        objective.split(*sizes)
    for n in (0, -1, 13):
        with pytest.raises(ValueError, match="12 rows"):
            objective.subsample(n)


def test_cutting_copies_nothing():
    objective = Objective(network(), nn.CrossEntropyLoss(), (X, LABELS), microbatch_size=4)
    assert [chunk.inputs.data_ptr() for chunk in objective.chunks] == [part.data_ptr() for part in X.split(4)]
