"""Traces under autocast, and products in lower precision."""

import pytest
import torch
from dense_oracle import relative
from product_cases import CLASSES, REALS, VECTORS, randn
from torch import Tensor, nn
from trace_cases import BOTH, Calling, calling, compare, mlp

from latephase import Objective
from latephase.curvature import linearize

pytestmark = pytest.mark.usefixtures("same_numbers")


def test_autocast():
    model = mlp().float()
    objective = Objective(model, nn.MSELoss(), (VECTORS.float(), REALS.float()))
    exact = linearize(objective, method="double_backward")
    v = randn(43, seed=1).float()
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            linearization = linearize(objective)
            product = linearization.matvec(v)
        assert float((product - exact.matvec(v)).norm() / exact.matvec(v).norm()) < 3e-2
        assert float(linearization.loss) == pytest.approx(float(exact.loss), rel=3e-2)
        assert float((linearization.gradient - exact.gradient).norm() / exact.gradient.norm()) < 3e-2
    compare(linearize(objective), exact, 1e-5)  # and what was traced under autocast does not serve without it


def test_autocast_inside_the_model():
    def narrow(self: Calling, h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            inner = self.inner(h)
        return torch.tanh(inner.float())

    model = calling(narrow, inner=nn.Linear(4, 4)).float()
    objective = Objective(model, nn.MSELoss(), (VECTORS.float(), REALS.float()))
    for _ in range(3):
        compare(linearize(objective), linearize(objective, method="double_backward"), 3e-2)


@BOTH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float32, 1e-5)])
@pytest.mark.parametrize("method", ["auto", "traced", "double_backward"])
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_products_in_lower_precision(method, dtype, tolerance, microbatch_size, curvature):
    objective = Objective(mlp(), nn.CrossEntropyLoss(), (VECTORS, CLASSES), microbatch_size=microbatch_size)
    exact = linearize(objective, curvature, method="double_backward")
    v = randn(43, seed=1)
    for _ in range(3):
        linearization = linearize(objective, curvature, dtype=dtype, method=method)
        product = linearization.matvec(v)
        assert product.dtype == torch.float64
        error = float((product - exact.matvec(v)).norm() / exact.matvec(v).norm())
        assert 1e-12 < error < tolerance
        form = float(exact.quadratic_form(v))
        assert float(linearization.quadratic_form(v)) == pytest.approx(form, rel=tolerance)
        assert relative(linearization.loss, exact.loss) < 1e-14
        assert relative(linearization.gradient, exact.gradient) < 1e-14
    assert linearization.method == ("traced" if method == "auto" else method)
