"""Sampled products over blocks: unbiased, symmetric, positive semi-definite and marked; all others are exact."""

import math
from collections.abc import Sequence

import pytest
import torch
from block_networks import norm_after, perceptron
from block_oracle import agree, dense_ggn, objective_of, partitions, sizes_of, without_cross_blocks
from dense_oracle import columns, relative
from product_cases import CLASS_WEIGHTS, CLASSES, ROWS, TIGHT, VECTORS, Case, randn
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import linearize, over_blocks

DRAWS = 150
WIDE = 40
"""Outputs of a network of which few samples are far cheaper than all of them."""

TARGETS = torch.randint(0, WIDE, (ROWS,), generator=torch.Generator().manual_seed(41))
TARGETS[3] = -100
SHARES = randn(ROWS, WIDE, seed=42).softmax(1)
NETWORKS = {
    "cross_entropy": Case(lambda: perceptron(4, 3, 3, WIDE), nn.CrossEntropyLoss(label_smoothing=0.1), targets=TARGETS),
    "squared": Case(lambda: perceptron(4, 3, WIDE), nn.MSELoss(reduction="sum"), targets=SHARES),
    "binary": Case(lambda: perceptron(4, 3, WIDE), nn.BCEWithLogitsLoss(), targets=SHARES),
    "batch_norm": Case(
        lambda: nn.Sequential(norm_after(nn.BatchNorm1d)[:5], nn.Linear(4, WIDE)),
        nn.CrossEntropyLoss(),
        targets=TARGETS,
    ),
}


def drawn(objective: Objective, sizes: Sequence[int], samples: int, seed: int, expected: int = 100):
    """Products over blocks by a draw of its own."""
    torch.manual_seed(seed)
    objective.reseed()
    return over_blocks(linearize(objective, at_once=True), sizes, expected=expected, samples=samples)


def set_up(name: str, **options) -> tuple[Objective, Tensor, list[int]]:
    """The objective, the exact matrix in blocks and their sizes."""
    case = NETWORKS[name]
    model = case.model()
    blocks = partitions(model)["layers"]
    return (
        objective_of(case, model, **options),
        without_cross_blocks(dense_ggn(case, model), model, blocks),
        sizes_of(blocks),
    )


def errors_of(name: str, samples: int, draws: int, **options) -> Tensor:
    """What M - G is in each sampled block for four fixed vectors V, relative to |V'GV| [draws, 11 per block].

    The entries of V'(M - G)V, and last their sum with the weights V'GV, which shows a factor on the whole block best.
    """
    objective, exact, sizes = set_up(name, **options)
    vectors, found, begins = randn(len(exact), 4, seed=44), [], [sum(sizes[:b]) for b in range(len(sizes))]
    for draw in range(draws):
        over = drawn(objective, sizes, samples, draw)
        products = torch.stack([over.matvec(v) for v in vectors.unbind(1)], dim=1)
        row = []
        for method, begin, size in zip(over.methods, begins, sizes, strict=True):
            rows = slice(begin, begin + size)
            wanted = exact[rows, rows] @ vectors[rows]
            if method == "sampled":
                form = vectors[rows].T @ wanted
                pairs = vectors[rows].T @ (products[rows] - wanted) / form.norm()
                row += [pairs[*torch.triu_indices(4, 4)], (pairs * form / form.norm()).sum()[None]]
            else:
                assert relative(products[rows], wanted) < TIGHT, f"{method} must be exact"
        assert "sampled" in over.methods
        found.append(torch.cat(row))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in NETWORKS), ("cross_entropy", {"microbatch_size": 6})], ids=str
)
def test_unbiased(name, options):
    """The mean of 150 draws of 16 samples is within 4.5 standard errors of the exact value, for each projection; a
    normal number is farther off once in 150,000. A factor of 1.1 on a block would show.
    """
    errors = errors_of(name, 16, DRAWS, **options)
    standard = errors.std(0) / math.sqrt(DRAWS)
    assert float(standard[10::11].max()) < 0.1 / 4.5
    assert float((errors.mean(0) / standard).abs().max()) < 4.5


def test_the_error_falls_with_the_root_of_the_samples():
    """16 times the samples, a quarter of the error; 40 draws of it are known to some tenth."""
    few, many = (float(errors_of("cross_entropy", samples, 40).square().mean().sqrt()) for samples in (1, 16))
    assert few / many == pytest.approx(4.0, rel=0.3)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_draw_is_a_fixed_positive_semidefinite_matrix(name):
    objective, exact, sizes = set_up(name)
    over = drawn(objective, sizes, 2, seed=0)
    matrix = columns(over.matvec, sum(sizes))
    assert not (matrix * ~_inside(sizes)).any(), "a cross block is not zero"
    assert relative(matrix.T, matrix) < TIGHT
    assert float(torch.linalg.eigvalsh((matrix + matrix.T) / 2).min()) > -TIGHT * float(matrix.norm())
    v = randn(sum(sizes), seed=45)
    assert relative(over.matvec(v), matrix @ v) < TIGHT
    assert torch.equal(over.matvec(v), over.matvec(v))
    assert relative(matrix, exact) > 1e-3  # it is an estimate
    again, other = (drawn(set_up(name)[0], sizes, 2, seed).matvec(v) for seed in (0, 1))
    assert relative(again, matrix @ v) < TIGHT  # the draw is the seed's
    assert relative(other, matrix @ v) > 1e-3


def test_chunks_that_are_linearised_anew_keep_their_draw():
    objective, exact, sizes = set_up("cross_entropy", microbatch_size=3, memory_limit=0)
    over = drawn(objective, sizes, 2, seed=0)
    u, v = randn(sum(sizes), 2, seed=49).unbind(1)
    one, two = over.matvec(u), over.matvec(v)
    assert torch.equal(over.matvec(u), one)
    for a, b, fa, fb in zip(*(x.split(sizes) for x in (u, v, one, two)), strict=True):
        assert float(b @ fa) == pytest.approx(float(a @ fb), abs=TIGHT * float(a.norm() * fb.norm()))
    if "sampled" not in over.methods:
        agree(one, exact @ u, sizes, TIGHT, 1e-300, f"with {over.methods}")


def _inside(sizes: Sequence[int]) -> Tensor:
    owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return owner[:, None] == owner


def test_the_l2_term_is_exact():
    objective, exact, sizes = set_up("cross_entropy", weight_decay=0.7)
    plain, _, _ = set_up("cross_entropy")
    v = randn(len(exact), seed=46)
    with_term, without = (drawn(each, sizes, 2, seed=3) for each in (objective, plain))
    agree(with_term.matvec(v) - without.matvec(v), 0.7 * v, sizes, TIGHT, 1.0, "of the term")


@pytest.mark.parametrize("expected", [1, 10_000])
def test_a_loss_that_cannot_be_sampled_stays_exact(expected):
    """The Hessian of this loss in the outputs is indefinite: it has no square root to draw from."""
    case = Case(
        lambda: perceptron(4, 3, WIDE), lambda z, y: ((z - y) ** 4 - 3 * z * z.roll(1, 1)).mean(), targets=SHARES
    )
    model = case.model()
    blocks = partitions(model)["layers"]
    wanted = without_cross_blocks(dense_ggn(case, model), model, blocks)
    over = drawn(objective_of(case, model), sizes_of(blocks), 2, seed=0, expected=expected)
    v = randn(len(wanted), seed=47)
    agree(over.matvec(v), wanted @ v, sizes_of(blocks), TIGHT, 1e-300, "without samples")
    assert "sampled" not in over.methods


def test_class_weights_and_targets_that_do_not_count():
    """A row without weight has no curvature, sampled or not; the others keep their weights."""
    targets = CLASSES.clone()
    targets[5:] = -100
    model = Case(lambda: perceptron(4, 8, 3), nn.CrossEntropyLoss(), targets=targets).model()
    loss = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)
    sizes = sizes_of(partitions(model)["layers"])
    first, second = (Objective(model, loss, (VECTORS[:n], targets[:n])) for n in (5, ROWS))
    exact = over_blocks(linearize(first, at_once=True), sizes)
    v = randn(sum(sizes), seed=48)
    mean = sum(drawn(second, sizes, 50, seed).matvec(v) for seed in range(20)) / 20
    wanted = exact.matvec(v)
    assert float((mean - wanted).norm()) < 0.1 * float(wanted.norm())  # 1000 samples: some 0.03
