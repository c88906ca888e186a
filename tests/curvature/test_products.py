"""Loss, gradient and curvature products of `linearize` against dense matrices, in float64."""

import pytest
import torch
from dense_oracle import columns, dense_oracle, relative
from product_cases import (
    CASES,
    CLASSES,
    CURVATURES,
    METHODS,
    PRODUCTS,
    ROWS,
    TIGHT,
    VECTORS,
    check_against,
    check_or_refusal,
    oracle,
    randn,
    seeded,
)
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import dense, linearize


def test_oracle_of_logistic_regression_in_closed_form():
    # GGN = Hessian = mean over rows of (diag(p) - p p') kron (x, 1)(x, 1)', the parameters in the order weight, bias.
    model, eye = seeded(lambda: nn.Linear(4, 3)), torch.eye(3, dtype=torch.float64)
    expected = 0.3 * torch.eye(15, dtype=torch.float64)
    for row, probabilities in zip(VECTORS, torch.softmax(model(VECTORS), dim=1).detach(), strict=True):
        jacobian = torch.cat([torch.kron(eye, row[None]), eye], dim=1)
        inner = torch.diag(probabilities) - torch.outer(probabilities, probabilities)
        expected += jacobian.T @ inner @ jacobian / ROWS
    actual = dense_oracle(model, nn.CrossEntropyLoss(), VECTORS, CLASSES, decay=lambda name, parameter: 0.3)
    assert relative(actual.ggn, expected) < 1e-14
    assert relative(actual.hessian, expected) < 1e-14


@pytest.mark.parametrize(("curvature", "method"), PRODUCTS)
@pytest.mark.parametrize("name", CASES)
def test_one_batch(name, curvature, method):
    case = CASES[name]
    objective = Objective(case.model(), case.loss, (case.inputs, case.targets), **case.options())
    if curvature == "ggn":
        check_against(objective, oracle(name), curvature, method)
    else:
        check_or_refusal(objective, oracle(name), curvature, method)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_whole_matrices(curvature):
    # Every entry, and the helper that builds it; the other tests multiply random vectors.
    for name in ("cross_entropy", "convolution", "tied"):
        case, expected = CASES[name], oracle(name).matrix(curvature)
        linearization = linearize(Objective(case.model(), case.loss, (case.inputs, case.targets)), curvature=curvature)
        assert relative(columns(linearization.matvec, len(expected)), expected) < TIGHT
        assert relative(dense(linearization.matvec, len(expected), torch.float64), expected) < TIGHT


@pytest.mark.parametrize(("curvature", "method"), PRODUCTS)
@pytest.mark.parametrize("name", ["cross_entropy_smoothing_weights", "lambda_coupling_rows", "tied"])
def test_from_forward(name, curvature, method):
    case = CASES[name]
    model = case.model()

    def forward() -> tuple[Tensor, Tensor]:
        outputs = model(case.inputs)
        return case.loss(outputs, case.targets), outputs

    objective = Objective.from_forward(model, forward)
    assert float(objective.value()) == pytest.approx(float(oracle(name).loss), rel=TIGHT)
    check_or_refusal(objective, oracle(name), curvature, method)


def test_methods_agree_on_a_wider_network():
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(54, 10),
        ).eval()
    )
    inputs = randn(16, 2, 6, 6, seed=1)
    targets = torch.arange(16) % 10
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, targets), weight_decay=1e-3)
    one, *others = (linearize(objective, method=name) for name in METHODS[::-1])
    v = randn(one.gradient.numel(), seed=2)
    for other in others:
        assert relative(other.gradient, one.gradient) < TIGHT
        assert relative(other.matvec(v), one.matvec(v)) < TIGHT


# ---------------------------------------------------------------------------------------------------------------------
# The product as an operator

OPERATOR_CASES = ["cross_entropy_weights", "convolution", "batch_norm_eval"]


@pytest.mark.parametrize(("curvature", "method"), [p for p in PRODUCTS if "auto" not in p])
@pytest.mark.parametrize("name", OPERATOR_CASES)
def test_linear_symmetric_and_consistent(name, curvature, method):
    case = CASES[name]
    data = case.chunks() if method == "double_backward" else (case.inputs, case.targets)
    objective = Objective(case.model(), case.loss, data, weight_decay=0.01)
    linearization = linearize(objective, curvature=curvature, method=method)
    size = linearization.gradient.numel()
    u, v = randn(size, seed=1), randn(size, seed=2)
    u_copy, v_copy = u.clone(), v.clone()
    first, second = linearization.matvec(u), linearization.matvec(v)
    assert relative(linearization.matvec(2.5 * u - 0.75 * v), 2.5 * first - 0.75 * second) < TIGHT
    assert float(v @ first) == pytest.approx(float(u @ second), rel=TIGHT, abs=TIGHT * float(first.norm() * v.norm()))
    assert float(linearization.quadratic_form(v)) == pytest.approx(float(v @ second), rel=TIGHT)
    assert torch.equal(linearization.matvec(u), first)  # nothing is left over from the products in between
    assert torch.equal(u, u_copy)
    assert torch.equal(v, v_copy)
    assert not linearization.matvec(torch.zeros(size, dtype=torch.float64)).any()
    assert not first.requires_grad


@pytest.mark.parametrize(("curvature", "method"), PRODUCTS)
def test_under_no_grad(curvature, method):
    # Optimizers step under no_grad; the linearisation has to bring its own.
    case = CASES["cross_entropy"]
    objective, expected = Objective(case.model(), case.loss, (case.inputs, case.targets)), oracle("cross_entropy")
    with torch.no_grad():
        check_against(objective, expected, curvature, method)


def test_ggn_is_positive_semidefinite_and_the_hessian_is_not():
    case = CASES["cross_entropy"]
    objective = Objective(case.model(), case.loss, (case.inputs, case.targets))
    size = len(oracle("cross_entropy").ggn)
    ggn, hessian = (columns(linearize(objective, curvature=name).matvec, size) for name in CURVATURES)
    assert float(torch.linalg.eigvalsh(ggn).min()) > -1e-14
    assert float(torch.linalg.eigvalsh(hessian).min()) < -1e-6


@pytest.mark.parametrize(("curvature", "method"), PRODUCTS)
def test_float32(curvature, method):
    case = CASES["convolution"]
    model = case.model().float()
    objective = Objective(model, case.loss, (case.inputs.float(), case.targets))
    linearization = linearize(objective, curvature=curvature, method=method)
    expected = oracle("convolution")
    v = randn(len(expected.gradient), seed=1)
    product = linearization.matvec(v.float())
    assert product.dtype == linearization.gradient.dtype == torch.float32
    # Rounding of float32 is 6e-8; the sums have some hundred terms.
    assert relative(linearization.gradient.double(), expected.gradient) < 1e-5
    assert relative(product.double(), expected.matrix(curvature) @ v) < 1e-5
