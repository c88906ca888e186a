"""Products with the Hessian of torch's losses in closed form, against the dense Hessian by autograd in float64."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_tensors import generator, normal, uniform
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.fx.experimental.proxy_tensor import make_fx

from latephase.curvature.loss.hessians import Product, hessian_product

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")

# Relative to the largest entry. The sums are short, so a larger difference is an error of the formula.
TIGHT = 1e-10
FORMS = st.sampled_from(["module", "functional", "partial of module"])
REDUCTIONS = st.sampled_from(["mean", "sum"])
SEEDS = st.integers(0, 2**31 - 1)
examples = functools.partial(settings, deadline=None, derandomize=True)


def known(loss: Any, outputs: Sequence[Tensor], targets: Any) -> Product:
    product = hessian_product(loss, outputs, targets)
    assert product is not None
    return product


def matrix(product: Product, outputs: Sequence[Tensor]) -> Tensor:
    """The dense matrix, column by column, over all outputs as one vector."""
    sizes = [output.numel() for output in outputs]
    columns = []
    for column in torch.eye(sum(sizes), dtype=outputs[0].dtype):
        u = [part.reshape(output.shape) for part, output in zip(column.split(sizes), outputs, strict=True)]
        result = product(u)
        assert [(r.shape, r.dtype) for r in result] == [(v.shape, v.dtype) for v in u]
        columns.append(torch.cat([r.reshape(-1) for r in result]))
    return torch.stack(columns, dim=1)


def by_autograd(function: Callable[..., Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """The same by torch, whose rows are the products: transposed, so that a NaN stands where a product has it."""
    blocks: Any = hessian(function, tuple(outputs))
    sizes = [output.numel() for output in outputs]
    rows = [
        torch.cat([block.reshape(m, n) for block, n in zip(row, sizes, strict=True)], dim=1)
        for row, m in zip(blocks, sizes, strict=True)
    ]
    return torch.cat(rows).T


def close(actual: Tensor, expected: Tensor, tolerance: float = TIGHT) -> None:
    """NaN equals NaN."""
    assert torch.equal(actual.isnan(), expected.isnan())
    actual, expected = actual.nan_to_num(), expected.nan_to_num()
    assert float((actual - expected).abs().max()) <= tolerance * float(expected.abs().max())


def check(loss: Any, outputs: Tensor, targets: Tensor) -> None:
    expected = by_autograd(lambda x: loss(x, targets), [outputs])
    close(matrix(known(loss, [outputs], targets), [outputs]), expected)


def build(form: str, module: type[nn.Module], functional: Any, **options: Any) -> Any:
    """A loss with these settings: a module, a partial of a functional, or a partial without effect of a module."""
    if form == "functional":
        return functools.partial(functional, **options) if options else functional
    return module(**options) if form == "module" else functools.partial(module(**options))


# ---------------------------------------------------------------------------------------------------------------------
# Against autograd


@given(
    form=FORMS,
    reduction=REDUCTIONS,
    positions=st.sampled_from([None, (1,), (3,), (2, 3), (2, 1, 2)]),
    classes=st.integers(1, 4),
    kind=st.sampled_from(["indices", "probabilities"]),
    ignored=st.sampled_from(["none", "some", "all"]),
    ignore_index=st.sampled_from([None, -100, -1, 0, 255]),
    weights=st.sampled_from([None, "positive", "some zero"]),
    smoothing=st.sampled_from([None, 0.0, 0.1, 1.0]),
    seed=SEEDS,
)
@examples(max_examples=300)
def test_cross_entropy(form, reduction, positions, classes, kind, ignored, ignore_index, weights, smoothing, seed):
    shape = (classes,) if positions is None else (positions[0], classes, *positions[1:])
    logits = 3 * normal(*shape, seed=seed)
    options: dict[str, Any] = {"reduction": reduction}
    if weights:
        weight = uniform(classes, seed=seed + 1) + 0.1
        options["weight"] = torch.where(uniform(classes, seed=seed) < 0.4, 0.0, weight) if "zero" in weights else weight
    if smoothing is not None:
        options["label_smoothing"] = smoothing
    if kind == "probabilities":
        targets = uniform(*shape, seed=seed + 2)  # torch does not ask that they add up to one
    else:
        if ignore_index is not None:
            options["ignore_index"] = ignore_index
        targets = torch.randint(classes, positions or (), generator=generator(seed))
        share = {"none": 0.0, "some": 0.5, "all": 1.0}[ignored]
        chosen = torch.rand(targets.shape, generator=generator(seed + 3)) < share
        targets = torch.where(chosen, options.get("ignore_index", -100), targets)
    check(build(form, nn.CrossEntropyLoss, F.cross_entropy, **options), logits, targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)])
def test_cross_entropy_with_every_target_ignored_is_flat(weight, smoothing):
    # The loss is 0/0 under a mean, but torch passes no gradient to an ignored position, nor have we curvature there.
    loss, logits = nn.CrossEntropyLoss(weight, label_smoothing=smoothing), normal(4, 3)
    targets = torch.full((4,), -100)
    assert torch.equal(known(loss, [logits], targets)([normal(4, 3, seed=1)])[0], torch.zeros_like(logits))
    check(loss, logits, targets)


def test_cross_entropy_of_bytes():
    # As an index into the weights, a tensor of bytes would be a mask.
    targets = torch.tensor([1, 2, 0, 255], dtype=torch.uint8)
    check(nn.CrossEntropyLoss(CLASS_WEIGHT, ignore_index=255), normal(4, 3), targets)


def test_cross_entropy_far_from_the_target_and_with_masked_classes():
    targets = torch.tensor([0, 1])
    check(nn.CrossEntropyLoss(), torch.tensor([[-40.0, 3.0, 40.0], [300.0, -300.0, 0.0]]).double(), targets)
    masked = torch.tensor([[1.0, 0.5, -math.inf], [-math.inf, 0.1, 2.0]]).double()
    product = known(nn.CrossEntropyLoss(), [masked], targets)
    expected = by_autograd(lambda x: F.cross_entropy(x, targets), [masked.clamp(min=-1e4)])
    close(matrix(product, [masked]), expected)


@given(form=FORMS, reduction=REDUCTIONS, shape=st.sampled_from([(3, 2), (2, 3, 2), (3,)]), seed=SEEDS)
@examples(max_examples=20)
def test_log_probabilities(form, reduction, shape, seed):
    outputs = normal(*shape, seed=seed).log_softmax(min(1, len(shape) - 1))
    targets = torch.randint(2, (shape[:1] + shape[2:])[: len(shape) - 1], generator=generator(seed))
    loss = build(form, nn.NLLLoss, F.nll_loss, reduction=reduction)
    check(loss, outputs, targets)
    assert torch.equal(known(loss, [outputs], targets)([outputs])[0], torch.zeros_like(outputs))


# Shapes of outputs and targets.
ALIKE = [((), ()), ((3,), (3,)), ((3, 2), (3, 2))]
BROADCAST = [((3, 1), (3, 2)), ((2,), (3, 2)), ((3, 2), (3, 1)), ((1, 2, 2), (3, 1, 2))]
SHAPES = st.sampled_from(ALIKE + BROADCAST)


@given(form=FORMS, reduction=REDUCTIONS, shapes=SHAPES, weighted=st.booleans(), seed=SEEDS)
@examples(max_examples=60)
def test_squared_error(form, reduction, shapes, weighted, seed):
    outputs, targets = normal(*shapes[0], seed=seed), normal(*shapes[1], seed=seed + 1)
    options: dict[str, Any] = {"reduction": reduction}
    if weighted:
        options["weight"], form = uniform(*shapes[0], seed=seed + 2), "functional"
    check(build(form, nn.MSELoss, F.mse_loss, **options), outputs, targets)


@given(
    form=FORMS,
    reduction=REDUCTIONS,
    weight=st.sampled_from([None, (), (2,), (3, 1), (2, 3, 2)]),
    pos_weight=st.sampled_from([None, (), (2,), (3, 1), (2, 3, 2)]),
    seed=SEEDS,
)
@examples(max_examples=60)
def test_binary_cross_entropy(form, reduction, weight, pos_weight, seed):
    logits, targets = 3 * normal(2, 3, 2, seed=seed), uniform(2, 3, 2, seed=seed + 1)
    options: dict[str, Any] = {"reduction": reduction}
    if weight is not None:
        options["weight"] = uniform(*weight, seed=seed + 2)
    if pos_weight is not None:
        options["pos_weight"] = 4 * uniform(*pos_weight, seed=seed + 3)
    check(build(form, nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, **options), logits, targets)


@given(
    form=FORMS,
    reduction=REDUCTIONS,
    shapes=SHAPES,
    log_input=st.sampled_from([None, True, False]),
    full=st.booleans(),
    eps=st.sampled_from([None, 0.5]),
    integers=st.booleans(),
    seed=SEEDS,
)
@examples(max_examples=60)
def test_poisson(form, reduction, shapes, log_input, full, eps, integers, seed):
    options = {"reduction": reduction, "full": full, "log_input": log_input, "eps": eps}
    options = {name: value for name, value in options.items() if value is not None}
    rates = uniform(*shapes[0], seed=seed) + 0.1
    targets = torch.poisson(torch.full(shapes[1], 2.0, dtype=torch.float64), generator=generator(seed))
    targets = targets.long() if integers else targets
    outputs = rates if log_input is False else rates.log()
    check(build(form, nn.PoissonNLLLoss, F.poisson_nll_loss, **options), outputs, targets)


# Shapes of mean and var that torch takes.
VARIANCES = st.sampled_from([((3, 2), (3, 2)), ((3, 2), (3, 1)), ((3, 2), (3,)), ((2,), ()), ((2, 1, 2), (2, 1))])


@given(
    module=st.booleans(),
    reduction=REDUCTIONS,
    shapes=VARIANCES,
    number=st.booleans(),
    full=st.booleans(),
    eps=st.sampled_from([None, 0.3]),
    wider=st.booleans(),
    seed=SEEDS,
)
@examples(max_examples=60)
def test_gaussian_with_fixed_variances(module, reduction, shapes, number, full, eps, wider, seed):
    outputs = normal(*shapes[0], seed=seed)
    targets = normal(*((2,) if wider else ()), *shapes[0], seed=seed + 1)
    var = 0.7 if number else uniform(*shapes[1], seed=seed + 2)
    options: dict[str, Any] = {"reduction": reduction, "full": full} | ({} if eps is None else {"eps": eps})
    if module:
        loss = functools.partial(nn.GaussianNLLLoss(**options), var=var)
    else:
        loss = functools.partial(F.gaussian_nll_loss, var=var, **options)
    check(loss, outputs, targets)


# ---------------------------------------------------------------------------------------------------------------------
# Fisher information of N(mean, var)

NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(6)  # E over a standard normal; exact up to degree 11
NODE_WEIGHTS = NODE_WEIGHTS / math.sqrt(2 * math.pi)


@given(
    reduction=REDUCTIONS,
    shapes=VARIANCES,
    full=st.booleans(),
    eps=st.sampled_from([1e-6, 0.4]),
    wider=st.booleans(),
    seed=SEEDS,
)
@examples(max_examples=25)
def test_fisher_is_the_expected_hessian(reduction, shapes, full, eps, wider, seed):
    # Each element of the loss has its own target, so that one node for all elements gives the expectation of the sum.
    loss = nn.GaussianNLLLoss(reduction=reduction, full=full, eps=eps)
    mean, var = normal(*shapes[0], seed=seed), uniform(*shapes[1], seed=seed + 1) + 0.01
    deviation = var.clamp(min=eps).sqrt()
    if deviation.shape != mean.shape and deviation.shape == mean.shape[:-1]:
        deviation = deviation.unsqueeze(-1)
    leading = (2,) if wider else ()
    expected = torch.zeros((), dtype=torch.float64)
    for node, weight in zip(NODES, NODE_WEIGHTS, strict=True):
        targets = (mean + node * deviation).expand(*leading, *mean.shape)
        expected = expected + weight * by_autograd(lambda m, v, y=targets: loss(m, y, v), [mean, var])
    targets = normal(*leading, *mean.shape, seed=seed + 2)
    close(matrix(known(loss, [mean, var], targets), [mean, var]), expected)


@pytest.mark.parametrize("eps", [1e-6, 0.9])
@pytest.mark.parametrize("size", [(1, 2), (1, 1), (1,)])
def test_fisher_is_the_expected_outer_product_of_scores(size, eps):
    loss = nn.GaussianNLLLoss(reduction="sum", eps=eps)
    mean, var = normal(1, 2, seed=3).requires_grad_(), (uniform(*size, seed=4) + 0.2).requires_grad_()
    deviation = var.detach().clamp(min=eps).sqrt().reshape(1, -1)
    size_of_both = mean.numel() + var.numel()
    expected = torch.zeros(size_of_both, size_of_both, dtype=torch.float64)
    for first, w in zip(NODES, NODE_WEIGHTS, strict=True):
        for second, w2 in zip(NODES, NODE_WEIGHTS, strict=True):
            targets = mean.detach() + deviation * torch.tensor([[first, second]])
            score = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(mean, targets, var), [mean, var])])
            expected += w * w2 * torch.outer(score, score)
    close(matrix(known(loss, [mean, var], targets), [mean.detach(), var.detach()]), expected)


def test_fisher_where_the_hessian_is_indefinite():
    loss = nn.GaussianNLLLoss()
    mean, var, targets = normal(3, 2), uniform(3, 2, seed=1) + 0.1, 5 + normal(3, 2, seed=2)
    exact = by_autograd(lambda m, v: loss(m, targets, v), [mean, var])
    assert torch.linalg.eigvalsh(exact)[0] < 0
    assert torch.linalg.eigvalsh(matrix(known(loss, [mean, var], targets), [mean, var]))[0] > 0


# ---------------------------------------------------------------------------------------------------------------------
# What holds for every loss


@dataclass(frozen=True)
class Case:
    """A loss and a sampler of (outputs, targets), the shapes being the same for every seed."""

    loss: Any
    sample: Callable[[int], tuple[list[Tensor], Tensor]]


def indices(seed: int, *shape: int) -> Tensor:
    """Targets of three classes, about a third of them ignored."""
    drawn = torch.randint(-1, 3, shape, generator=generator(seed))
    return torch.where(drawn < 0, -100, drawn)


def vectors(seed: int) -> list[Tensor]:
    return [2 * normal(4, 3, seed=seed)]


CLASS_WEIGHT = torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64)
CASES = {
    "cross_entropy": Case(F.cross_entropy, lambda s: (vectors(s), indices(s, 4))),
    "cross_entropy_weight": Case(
        nn.CrossEntropyLoss(CLASS_WEIGHT, label_smoothing=0.1), lambda s: (vectors(s), indices(s, 4))
    ),
    "cross_entropy_sequence": Case(
        nn.CrossEntropyLoss(CLASS_WEIGHT, reduction="sum"), lambda s: ([normal(2, 3, 4, seed=s)], indices(s, 2, 4))
    ),
    "cross_entropy_probabilities": Case(
        nn.CrossEntropyLoss(CLASS_WEIGHT), lambda s: (vectors(s), uniform(4, 3, seed=s).softmax(1))
    ),
    "log_probabilities": Case(nn.NLLLoss(), lambda s: ([vectors(s)[0].log_softmax(1)], indices(s, 4))),
    "squared_error": Case(nn.MSELoss(), lambda s: (vectors(s), normal(4, 3, seed=s + 1))),
    "squared_error_weight": Case(
        functools.partial(F.mse_loss, weight=uniform(4, 3)), lambda s: (vectors(s), normal(4, 3, seed=s + 1))
    ),
    "binary_cross_entropy": Case(
        nn.BCEWithLogitsLoss(weight=uniform(3), pos_weight=CLASS_WEIGHT),
        lambda s: (vectors(s), uniform(4, 3, seed=s + 1).round()),
    ),
    "poisson": Case(nn.PoissonNLLLoss(), lambda s: (vectors(s), 5 * uniform(4, 3, seed=s + 1))),
    "poisson_rate": Case(
        nn.PoissonNLLLoss(log_input=False), lambda s: ([uniform(4, 3, seed=s) + 0.1], 5 * uniform(4, 3, seed=s + 1))
    ),
    "gaussian": Case(
        functools.partial(F.gaussian_nll_loss, var=uniform(4, 1) + 0.1),
        lambda s: (vectors(s), normal(4, 3, seed=s + 1)),
    ),
    "gaussian_fisher": Case(
        nn.GaussianNLLLoss(), lambda s: ([normal(4, 3, seed=s), uniform(4, seed=s) + 0.1], normal(4, 3, seed=s + 1))
    ),
}
every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def directions(outputs: Sequence[Tensor], seed: int) -> list[Tensor]:
    return [normal(*output.shape, seed=seed + i).to(output.dtype) for i, output in enumerate(outputs)]


@every_loss
def test_symmetric_and_positive_semidefinite(case):
    outputs, targets = case.sample(1)
    dense = matrix(known(case.loss, outputs, targets), outputs)
    close(dense, dense.T, 1e-14)
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert eigenvalues[0] >= -1e-13 * eigenvalues[-1]


@every_loss
def test_linear(case):
    outputs, targets = case.sample(1)
    product = known(case.loss, outputs, targets)
    u, v = directions(outputs, 2), directions(outputs, 5)
    joint = product([2.5 * a - b for a, b in zip(u, v, strict=True)])
    for actual, a, b in zip(joint, product(u), product(v), strict=True):
        close(actual, 2.5 * a - b, 1e-13)


@every_loss
def test_no_gradient_and_nothing_changed(case, snapshot_of):
    outputs, targets = case.sample(1)
    outputs = [output.requires_grad_() for output in outputs]
    u = directions(outputs, 2)
    before = snapshot_of(outputs, targets, u)
    assert not any(result.requires_grad for result in known(case.loss, outputs, targets)(u))
    assert snapshot_of(outputs, targets, u) == before


def test_no_gradient_of_a_weight_that_is_learned():
    loss = functools.partial(F.cross_entropy, weight=CLASS_WEIGHT.clone().requires_grad_())
    outputs, targets = vectors(1), indices(1, 4)
    assert not known(loss, outputs, targets)(vectors(2))[0].requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # torch's own import
@every_loss
def test_no_tangent_of_the_outputs(case):
    # Under forward mode the matrix is a constant, only u moves.
    outputs, targets = case.sample(1)
    u, v = directions(outputs, 2), directions(outputs, 5)
    product = known(case.loss, outputs, targets)
    _, moved = torch.func.jvp(lambda x, y: known(case.loss, x, targets)(y), (outputs, u), (u, v))
    for actual, expected in zip(moved, product(v), strict=True):
        close(actual, expected, 1e-14)


@pytest.fixture
def snapshot_of() -> Callable[..., list[bytes]]:
    def snapshot(outputs: list[Tensor], targets: Tensor, u: list[Tensor]) -> list[bytes]:
        return [tensor.detach().numpy().tobytes() for tensor in [*outputs, targets, *u]]

    return snapshot


@every_loss
def test_traced_graph_follows_its_data(case):
    def whole(outputs: list[Tensor], targets: Tensor, u: list[Tensor]) -> list[Tensor]:
        return known(case.loss, outputs, targets)(u)

    outputs, targets = case.sample(1)
    graph = make_fx(whole)(outputs, targets, directions(outputs, 2))
    for seed in (3, 4, 5):
        outputs, targets = case.sample(seed)
        u = directions(outputs, seed)
        for actual, expected in zip(graph(outputs, targets, u), whole(outputs, targets, u), strict=True):
            assert torch.equal(actual, expected)
    product = known(case.loss, outputs, targets)
    graph = make_fx(lambda *u: product(list(u)))(*u)
    operations = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert len(operations) <= 4
    u = directions(outputs, 9)
    for actual, expected in zip(graph(*u), product(u), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_loss
def test_other_dtypes(case, dtype):
    outputs, targets = case.sample(1)
    narrow = [output.to(dtype) for output in outputs]
    u = directions(narrow, 2)
    # The same rounded numbers in float64, so that the arithmetic alone differs.
    exact = known(case.loss, [output.double() for output in narrow], targets)([v.double() for v in u])
    for result, v, expected in zip(known(case.loss, narrow, targets)(u), u, exact, strict=True):
        assert (result.dtype, result.shape) == (dtype, v.shape)
        # Half precision is computed in float32: nothing is lost but in rounding the result.
        close(result.double(), expected, (4 if dtype is torch.float32 else 0.51) * torch.finfo(dtype).eps)


# ---------------------------------------------------------------------------------------------------------------------
# Losses that are not known


class OwnForward(nn.CrossEntropyLoss):
    """A subclass that computes something else."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 2 * super().forward(input, target)


class Unhashable:
    """A callable that can be compared but not hashed."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).exp().sum()


def with_hook() -> nn.Module:
    loss = nn.MSELoss()
    loss.register_forward_hook(lambda module, arguments, result: 2 * result)
    return loss


def with_forward_replaced() -> nn.Module:
    loss = nn.MSELoss()
    loss.forward = lambda input, target: F.l1_loss(input, target)
    return loss


@pytest.mark.parametrize(
    "loss",
    [
        None,
        OwnForward(),
        functools.partial(OwnForward()),
        Unhashable(),
        with_hook(),
        with_forward_replaced(),
        lambda outputs, targets: F.mse_loss(outputs, targets),
        nn.L1Loss(),
        nn.BCELoss(),
        nn.KLDivLoss(reduction="batchmean"),
        nn.MSELoss(reduction="none"),
        nn.CrossEntropyLoss(reduction="none"),
        functools.partial(F.mse_loss, reduction="none"),
        functools.partial(F.mse_loss, reduction="batchmean"),
        functools.partial(F.mse_loss, size_average=False),
        functools.partial(F.mse_loss, reduce=True),
        functools.partial(F.mse_loss, torch.zeros(4, 3)),
        nn.GaussianNLLLoss(),
        F.gaussian_nll_loss,
        functools.partial(F.gaussian_nll_loss, full=True),
    ],
)
def test_none_for_any_other_loss(loss):
    assert hessian_product(loss, [torch.rand(4, 3)], torch.rand(4, 3)) is None


def test_none_for_any_other_outputs_or_targets():
    one, loss = torch.rand(4, 3), nn.MSELoss()
    assert hessian_product(loss, [], one) is None
    assert hessian_product(loss, [one, one], one) is None
    assert hessian_product(loss, [one], 0.5) is None
    assert hessian_product(loss, [one.to(torch.complex64)], one) is None
    assert hessian_product(nn.GaussianNLLLoss(), [one, one, one], one) is None
    assert hessian_product(functools.partial(nn.GaussianNLLLoss(), var=one), [one, one], one) is None


def test_own_reduction_by_the_old_arguments_of_a_module():
    # A module turns them into its reduction, so that nothing is left to refuse.
    with pytest.warns(UserWarning, match="size_average"):
        loss = nn.MSELoss(size_average=False)
    check(loss, normal(3, 2), normal(3, 2, seed=1))
