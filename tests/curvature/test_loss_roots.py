"""Square roots of the losses' Hessians: S S' is the Hessian that autograd finds, in float64."""

import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_tensors import generator, normal, uniform
from torch import Tensor, nn
from torch.autograd.functional import hessian

from latephase.curvature.loss.hessians import hessian_product
from latephase.curvature.loss.roots import MOST_COLUMNS, hessian_root, root_of_any

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")

TIGHT = 1e-10
"""Relative to the largest entry: the sums are short, so a larger difference is an error of the formula."""
SEEDS = st.integers(0, 2**31 - 1)
examples = functools.partial(settings, deadline=None, derandomize=True)


def squared(loss: Any, outputs: list[Tensor], targets: Tensor, root_of: Any = hessian_root) -> Tensor:
    """S S', dense over all outputs as one vector."""
    root = root_of(loss, outputs, targets)
    assert root is not None
    sizes = [output.numel() for output in outputs]
    columns = []
    for unit in torch.eye(sum(sizes), dtype=outputs[0].dtype):
        u = [piece.reshape(output.shape) for piece, output in zip(unit.split(sizes), outputs, strict=True)]
        result = root(u)
        assert [(r.shape, r.dtype) for r in result] == [(v.shape, v.dtype) for v in u]
        columns.append(torch.cat([r.reshape(-1) for r in result]))
    dense = torch.stack(columns, dim=1)
    return dense @ dense.T


def check(loss: Any, outputs: Tensor, targets: Tensor) -> None:
    size = outputs.numel()
    expected: Any = hessian(lambda x: loss(x, targets), outputs)
    expected = expected.reshape(size, size)
    found = squared(loss, [outputs], targets)
    assert torch.equal(found.isnan(), expected.isnan())
    difference = (found - expected).nan_to_num().abs().max()
    assert float(difference) <= TIGHT * float(expected.nan_to_num().abs().max())


@given(
    reduction=st.sampled_from(["mean", "sum"]),
    positions=st.sampled_from([(1,), (3,), (2, 3)]),
    classes=st.integers(1, 4),
    kind=st.sampled_from(["indices", "some ignored", "probabilities"]),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    functional=st.booleans(),
    seed=SEEDS,
)
@examples(max_examples=120)
def test_cross_entropy(reduction, positions, classes, kind, weighted, smoothing, functional, seed):
    shape = (positions[0], classes, *positions[1:])
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    if weighted:
        options["weight"] = uniform(classes, seed=seed + 1) + 0.1
    if kind == "probabilities":
        targets = uniform(*shape, seed=seed + 2)
    else:
        targets = torch.randint(classes, positions, generator=generator(seed))
        if kind == "some ignored":
            targets = torch.where(uniform(*positions, seed=seed + 3) < 0.3, -100, targets)
    loss = functools.partial(F.cross_entropy, **options) if functional else nn.CrossEntropyLoss(**options)
    if (targets == -100).all() and reduction == "mean":  # 0/0, of which autograd makes a mixture of NaN and zeros
        return
    check(loss, 3 * normal(*shape, seed=seed), targets)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("outputs", "targets"), [((4, 3), (4, 3)), ((4,), (4,)), ((4, 1), (4,)), ((4, 3), (3,))])
def test_squared_error(reduction, outputs, targets):
    check(nn.MSELoss(reduction=reduction), normal(*outputs), normal(*targets, seed=1))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_binary_cross_entropy(reduction):
    options = {"weight": uniform(3, seed=4), "pos_weight": uniform(3, seed=5) + 0.1}
    check(nn.BCEWithLogitsLoss(reduction=reduction, **options), normal(5, 3), uniform(5, 3, seed=1))
    check(F.binary_cross_entropy_with_logits, normal(5, 3), uniform(5, 3, seed=1))


@pytest.mark.parametrize("log_input", [True, False])
def test_poisson(log_input):
    check(nn.PoissonNLLLoss(log_input=log_input, full=True), uniform(5, 3) + 0.1, uniform(5, 3, seed=1) + 2)


def test_gaussian_in_the_mean_and_the_variance():
    loss, center, var, targets = nn.GaussianNLLLoss(), normal(5, 2), uniform(5, 2) + 0.2, normal(5, 2, seed=1)
    found = squared(loss, [center, var], targets)
    fisher = torch.cat([(1 / var).reshape(-1), (1 / (2 * var**2)).reshape(-1)]) / 10
    torch.testing.assert_close(found, torch.diag(fisher), rtol=TIGHT, atol=0)


def test_a_linear_loss_has_the_root_zero():
    log_probabilities = normal(4, 3).log_softmax(1)
    assert not squared(nn.NLLLoss(), [log_probabilities], torch.tensor([0, 1, 2, 0])).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_computed_in_single_precision_at_least(dtype):
    outputs, targets = normal(4, 3).to(dtype), torch.tensor([0, 1, 2, 0])
    found = squared(nn.CrossEntropyLoss(), [outputs], targets).double()
    exact = squared(nn.CrossEntropyLoss(), [outputs.double()], targets)
    torch.testing.assert_close(found, exact, rtol=0, atol=8 * float(torch.finfo(dtype).eps) * float(exact.max()))


def test_no_root_where_the_hessian_is_not_known_or_not_definite():
    x, y = normal(4, 3), torch.tensor([0, 1, 2, 0])
    assert hessian_root(lambda outputs, targets: outputs.sum(), [x], y) is None
    assert hessian_root(nn.L1Loss(), [x], x) is None
    assert hessian_root(nn.PoissonNLLLoss(log_input=False), [x.abs() + 1], -torch.ones(4, 3)) is None
    assert hessian_root(nn.CrossEntropyLoss(torch.tensor([1.0, -1.0, 1.0]), reduction="sum"), [x], y) is None


def test_it_is_the_root_of_the_product():
    """Where both are defined they say the same of a vector."""
    x, y, u = normal(6, 4), torch.randint(4, (6,), generator=generator(1)), normal(6, 4, seed=2)
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)
    product, root = hessian_product(loss, [x], y), hessian_root(loss, [x], y)
    assert product is not None
    assert root is not None
    (transposed,) = torch.func.vjp(lambda v: root([v])[0], u)[1](u)
    assert math.isclose(float(transposed.square().sum()), float((u * product([u])[0]).sum()), rel_tol=1e-12)


OWN = {
    "half-squared": lambda outputs, targets: 0.5 * (outputs - targets).square().mean(),
    "classes": lambda outputs, targets: F.cross_entropy(outputs, targets.argmax(1), reduction="sum") / 7,
    "log-cosh": lambda outputs, targets: (outputs - targets).cosh().log().sum(),
    "quartic": lambda outputs, targets: (outputs - targets).pow(4).mean(),
    "coupled-columns": lambda outputs, targets: (outputs.sum(1) - targets[:, 0]).square().mean(),
}


@pytest.mark.parametrize("name", OWN)
@examples(max_examples=20)
@given(rows=st.integers(1, 5), columns=st.integers(1, 4), seed=SEEDS)
def test_roots_of_losses_of_ones_own(name, rows, columns, seed):
    outputs, targets = normal(rows, columns, seed=seed), normal(rows, columns, seed=seed + 1)
    exact = hessian(lambda x: OWN[name](x, targets), outputs).reshape(rows * columns, -1)
    if float(exact.abs().max()) < 1e-12:  # one class, or a point at its target
        return
    found = squared(OWN[name], [outputs], targets, root_of_any)
    # The largest eigenvalue decides what is zero; decomposing costs a few digits of the products' accuracy.
    assert float((found - exact).abs().max()) < 1e-9 * float(exact.abs().max())


def test_torchs_own_losses_keep_their_formulas():
    x, y = normal(6, 4), torch.randint(4, (6,), generator=generator(1))
    roots = [hessian_root(nn.CrossEntropyLoss(), [x], y), root_of_any(nn.CrossEntropyLoss(), [x], y)]
    assert torch.equal(*[root([x])[0] for root in roots if root is not None])


@pytest.mark.parametrize(
    "name", ["coupled", "concave", "saddle", "linear", "kinked", "wide", "vector", "constant", "once"]
)
def test_no_root_of_what_is_not_convex_or_not_apart(name):
    losses = {
        "coupled": lambda outputs, targets: outputs.sum().square(),
        "concave": lambda outputs, targets: -outputs.square().sum(),
        "saddle": lambda outputs, targets: (outputs[:, 0] * outputs[:, 1]).sum(),
        "linear": lambda outputs, targets: (outputs * targets).sum(),
        "kinked": lambda outputs, targets: (outputs - targets).abs().sum(),
        "wide": lambda outputs, targets: outputs.square().sum(),
        "vector": lambda outputs, targets: outputs.square().sum(),
        "constant": lambda outputs, targets: targets.sum(),
        "once": nn.MultiMarginLoss(),
    }
    outputs = {"wide": normal(2, MOST_COLUMNS + 1), "vector": torch.tensor(1.0)}.get(name, normal(4, 3))
    targets = torch.tensor([0, 1, 2, 0]) if name == "once" else torch.ones_like(outputs)
    assert root_of_any(losses[name], [outputs], targets) is None


def test_a_loss_that_is_flat_here_and_not_elsewhere_has_the_root_zero():
    """Every residual is beyond the threshold: the Gauss-Newton matrix is zero, and no reason to give up."""
    outputs = normal(4, 3)
    root = root_of_any(nn.HuberLoss(), [outputs], outputs + 50)
    assert root is not None
    assert float(root([torch.ones_like(outputs)])[0].abs().max()) == 0


def test_a_hessian_that_is_not_finite_is_said_to_be_none():
    x = normal(4, 3)
    root = root_of_any(lambda outputs, targets: (outputs - targets).abs().pow(1.5).sum(), [x], x)
    assert root is not None
    assert not bool(root([torch.ones_like(x)])[0].isfinite().any())


@pytest.mark.parametrize("shape", [(5, 2, 3), (2, 5, 3)])
def test_outputs_of_any_layout(shape):
    """Sequence-first models return permuted outputs, and a loss may work in place on what it gets."""
    outputs, targets = normal(*shape).transpose(0, 1), normal(*shape, seed=2).transpose(0, 1)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return x.sub_(y).square().mean()

    expected = squared(nn.MSELoss(), [outputs], targets)
    found = squared(loss, [outputs], targets, root_of_any)
    assert float((found - expected).abs().max()) < TIGHT * float(expected.abs().max())


def test_a_root_in_half_precision_is_computed_in_single():
    outputs = normal(4, 3).to(torch.bfloat16)
    root = root_of_any(OWN["log-cosh"], [outputs], torch.zeros_like(outputs))
    assert root is not None
    (found,) = root([torch.ones_like(outputs)])
    exact = 1 / outputs.double().cosh()
    assert found.dtype == torch.bfloat16
    assert float((found.double().abs() - exact).abs().max()) < 0.02  # three digits of bfloat16
