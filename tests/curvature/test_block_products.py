"""Products over blocks against dense float64 matrices with the cross blocks set to zero."""

import pytest
import torch
from block_networks import perceptron
from block_oracle import (
    ALL,
    EXPECTED,
    METHODS,
    agree,
    check,
    dense_ggn,
    dense_of,
    objective_of,
    partitions,
    sizes_of,
    trainable,
    without_cross_blocks,
)
from dense_oracle import columns, dense_oracle, relative
from product_cases import CLASSES, REALS, ROWS, TIGHT, VECTORS, Case, randn, seeded
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import block_diagonal, linearize, over_blocks

CORE = ["classifier", "autoencoder", "convolution", "embedding", "tied", "batch_norm"]
CHUNKED = [
    "cross_entropy_smoothing_weights", "cross_entropy_positions", "autoencoder_squared", "tied_autoencoder",
    "unused_parameter", "dict_inputs",
]  # fmt: skip
NARROW = ["classifier", "autoencoder", "convolutional", "embedding", "batch_norm", "attention"]
SECOND = ["classifier", "autoencoder", "convolution", "tied", "batch_norm", "own_parameters"]
ALWAYS = EXPECTED[-1]


@pytest.mark.parametrize("name", ALL)
def test_layers(name):
    model = ALL[name].model()
    objective = objective_of(ALL[name], model)
    for expected in EXPECTED:
        check(objective, dense_of(name), partitions(model)["layers"], expected)


@pytest.mark.parametrize("name", [*CORE, "shared_module", "recurrent", "frozen_in_between", "attention"])
def test_other_partitions(name):
    model = ALL[name].model()
    objective, found = objective_of(ALL[name], model), partitions(model)
    for which in ("parameters", "halves", "alternating", "whole") if name in CORE else ("alternating",):
        check(objective, dense_of(name), found[which], ALWAYS)


@pytest.mark.parametrize("name", CORE)
def test_every_entry(name):
    case = ALL[name]
    model = case.model()
    blocks = partitions(model)["layers"]
    wanted = without_cross_blocks(dense_of(name), model, blocks)
    over = over_blocks(linearize(objective_of(case, model), at_once=True), sizes_of(blocks), expected=ALWAYS)
    assert relative(columns(over.matvec, len(wanted)), wanted) < TIGHT


@pytest.mark.parametrize(("memory_limit", "expected"), [(None, ALWAYS), (0, 1)], ids=["kept", "anew"])
@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_of_unequal_size(name, memory_limit, expected):
    """Three chunks, one of a single row."""
    case = ALL[name]
    model = case.model()
    parts = [case.rows(begin, end) for begin, end in ((0, 5), (5, 6), (6, ROWS))]
    objective = Objective(model, case.loss, parts, memory_limit=memory_limit, **case.options())
    check(objective, dense_of(name), partitions(model)["layers"], expected)


@pytest.mark.parametrize("name", ["classifier", "autoencoder"])
def test_microbatches(name):
    model = ALL[name].model()
    objective = objective_of(ALL[name], model, microbatch_size=4, memory_limit=0)
    check(objective, dense_of(name), partitions(model)["parameters"], ALWAYS)


@pytest.mark.parametrize("expected", EXPECTED)
def test_a_chunk_without_a_counted_target(expected):
    targets = CLASSES.clone()
    targets[:4] = -100
    case = Case(lambda: perceptron(4, 5, 3), nn.CrossEntropyLoss(), targets=targets)
    model = case.model()
    objective = Objective(model, case.loss, [(VECTORS[:4], targets[:4]), (VECTORS[4:], targets[4:])])
    check(objective, dense_ggn(case, model), partitions(model)["layers"], expected)


@pytest.mark.parametrize("name", ["classifier", "autoencoder", "unused_parameter"])
def test_weight_decay(name):
    model = ALL[name].model()
    decays = torch.cat([torch.full((p.numel(),), 0.3 * (p.dim() == 1), dtype=torch.float64) for p in trainable(model)])
    objective = objective_of(ALL[name], model, weight_decay=(0.3, lambda _, p: p.dim() == 1))
    for expected in EXPECTED:
        check(objective, dense_of(name) + torch.diag(decays), partitions(model)["layers"], expected)


@pytest.mark.parametrize("name", NARROW)
def test_float32(name):
    case = ALL[name]
    narrow = [x.float() if x.is_floating_point() else x for x in (case.inputs, case.targets)]
    model = case.model().float()
    # Rounding of float32 is 6e-8, and differences of softmax and normalisation lose some digits of it.
    objective = Objective(model, case.loss, narrow)
    for expected in EXPECTED:
        check(objective, dense_of(name), partitions(model)["layers"], expected, 1e-4)


@pytest.mark.parametrize("expected", EXPECTED)
def test_products_in_another_dtype_than_the_parameters(expected):
    for name in ("classifier", "autoencoder"):
        model = ALL[name].model()
        blocks = partitions(model)["layers"]
        objective = objective_of(ALL[name], model)
        check(objective, dense_of(name), blocks, expected, 1e-4, dtype=torch.float32)


@pytest.mark.parametrize("name", SECOND)
def test_the_blocks_of_the_hessian(name):
    case = ALL[name]
    model = case.model()
    hessian = dense_oracle(model, case.loss, case.inputs, case.targets).hessian
    objective = objective_of(case, model)
    for expected in EXPECTED:
        check(objective, hessian, partitions(model)["layers"], expected, curvature="hessian")


@pytest.mark.parametrize("expected", EXPECTED)
@pytest.mark.parametrize("chunked", [False, True], ids=["one", "chunks"])
def test_all_blocks_see_the_dropout_mask_of_the_loss(chunked, expected):
    """The dense matrices are of the same masks: the generator stands where the objective sets it for each chunk."""
    case = Case(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 6), nn.Dropout(0.3),
                              nn.Tanh(), nn.Linear(6, 3)).train(),
        nn.CrossEntropyLoss(),
    )  # fmt: skip
    model = case.model()
    parts = [case.rows(0, 1), case.rows(1, ROWS)] if chunked else [(case.inputs, case.targets)]
    torch.manual_seed(3)
    objective = Objective(model, case.loss, parts)
    matrix, loss = torch.zeros(()), 0.0
    for index, (inputs, targets) in enumerate(parts):

        def forward(call, x, index=index):
            with objective.random_numbers(index):
                return call(x)

        part = Case(case.build, case.loss, inputs, targets)
        matrix = matrix + len(targets) / ROWS * dense_ggn(part, model, forward=forward)
        loss += len(targets) / ROWS * float(case.loss(forward(model, inputs), targets).detach())
    assert float(linearize(objective).loss) == pytest.approx(loss, rel=1e-13), "else the oracle is of other masks"
    check(objective, matrix, partitions(model)["layers"], expected)


@pytest.mark.parametrize("expected", EXPECTED)
def test_from_forward(expected):
    """Outputs that are residuals, with no rows at all."""
    case = Case(lambda: perceptron(4, 5, 3), lambda z, y: z.pow(2).sum() + z[0].exp() * z[3])

    def residuals(model, x):
        return torch.cat([model(x).reshape(-1)[:7], model(x[:2]).sin().sum(1)])

    model = case.model()
    matrix = dense_ggn(case, model, forward=residuals)

    def forward() -> tuple[Tensor, Tensor]:
        z = residuals(model, case.inputs)
        return case.loss(z, CLASSES), z

    check(Objective.from_forward(model, forward), matrix, partitions(model)["layers"], expected)


@pytest.mark.parametrize("expected", EXPECTED)
def test_several_outputs(expected):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.mean, self.spread = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.body(x))
            return self.mean(h), self.spread(h)

    def loss(z: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        return ((z[0] - y).pow(2) * (-z[1]).exp() + z[1]).mean()

    model = seeded(Two)
    matrix = dense_ggn(
        Case(Two, lambda z, y: loss((z[..., :3], z[..., 3:]), y), targets=REALS),
        model,
        forward=lambda call, x: torch.cat(call(x), dim=1),
    )
    check(Objective(model, loss, (VECTORS, REALS)), matrix, partitions(model)["layers"], expected)


@pytest.mark.parametrize("expected", EXPECTED)
@pytest.mark.parametrize("name", ["classifier", "autoencoder", "batch_norm"])
def test_a_fixed_linear_symmetric_operator(name, expected):
    case = ALL[name]
    model = case.model()
    blocks = partitions(model)["layers"]
    sizes = sizes_of(blocks)
    generator = torch.get_rng_state()
    with torch.no_grad():  # as optimizers step
        curved = linearize(objective_of(case, model), at_once=True)
        over, other = (over_blocks(curved, sizes, expected=count) for count in (expected, 7))
        u, v = randn(sum(sizes), seed=1), randn(sum(sizes), seed=2)
        kept = u.clone()
        first = over.matvec(u)
        copy = first.clone()
        second, full = over.matvec(v), curved.matvec(u)
        assert relative(other.matvec(v), second) < TIGHT
        assert torch.equal(over.matvec(u), copy)
        assert torch.equal(first, copy), "a later product wrote into an earlier one"
        assert torch.equal(u, kept)
        assert relative(over.matvec(2.5 * u - 0.75 * v), 2.5 * first - 0.75 * second) < TIGHT
        for one, two, fu, fv in zip(*(x.split(sizes) for x in (u, v, first, second)), strict=True):
            scale = float(one.norm() * fv.norm() + two.norm() * fu.norm())
            assert float(two @ fu) == pytest.approx(float(one @ fv), abs=TIGHT * scale)
        assert not over.matvec(torch.zeros_like(u)).any()
        assert not first.requires_grad
        assert relative(over.matvec(torch.stack([u, v], dim=1)[:, 0]), copy) < TIGHT  # strided
    assert torch.equal(torch.get_rng_state(), generator)
    assert relative(full, dense_of(name) @ u) < TIGHT  # blocks leave the whole product as it was


def test_nothing_is_kept_from_an_earlier_step():
    """Parameters, data and mode of the same model change, the shapes stay: each time the products are the new ones."""
    case = ALL["batch_norm"]
    model = case.model()
    for step in range(4):
        model.train(step % 2 == 0)
        now = Case(case.build, case.loss, VECTORS + step, CLASSES.roll(step))
        matrix = dense_ggn(now, model)
        for expected in EXPECTED:
            check(objective_of(now, model), matrix, partitions(model)["layers"], expected)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * randn(*p.shape, seed=step))


@pytest.mark.parametrize("short", [[], [20], [19, 84], [103, 0], [20, 6, 78]], ids=str)
def test_blocks_are_of_whole_parameters(short):
    model = ALL["classifier"].model()
    assert [p.numel() for p in model.parameters()] == [24, 6, 30, 5, 20, 4, 12, 3]
    with pytest.raises(ValueError, match="block"):
        over_blocks(linearize(objective_of(ALL["classifier"], model)), short)


@pytest.mark.parametrize("expected", EXPECTED)
def test_products_are_refused_once_the_parameters_moved(expected):
    model = ALL["classifier"].model()
    curved = linearize(objective_of(ALL["classifier"], model), at_once=True)
    over = over_blocks(curved, sizes_of(partitions(model)["layers"]), expected=expected)
    v = torch.ones_like(curved.gradient)
    over.matvec(v)
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    with pytest.raises(RuntimeError, match="changed"):
        over.matvec(v)


def test_the_plain_way_agrees():
    """One whole product per block, by the operator that needs nothing but products."""
    case = ALL["attention"]
    model = case.model()
    sizes = sizes_of(partitions(model)["layers"])
    curved = linearize(objective_of(case, model), at_once=True)
    v = randn(sum(sizes), seed=1)
    plain = block_diagonal(curved.matvec, sizes)(v)
    for expected in EXPECTED:
        agree(over_blocks(curved, sizes, expected=expected).matvec(v), plain, sizes, TIGHT, 1e-300, "of the plain way")


def test_every_way_of_computing_products_is_compared():
    """Else a way that is never chosen for networks of this size would go untested."""
    seen = set()
    for name in ("classifier", "one_output", "autoencoder", "branching"):
        model = ALL[name].model()
        for expected in EXPECTED:
            seen |= {*check(objective_of(ALL[name], model), dense_of(name), partitions(model)["layers"], expected)}
    assert seen == METHODS
