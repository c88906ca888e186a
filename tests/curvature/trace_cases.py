"""Networks whose traces are compared with a linearisation that knows none."""

from collections.abc import Callable

import pytest
from dense_oracle import relative
from product_cases import REALS, TIGHT, VECTORS, randn, seeded
from torch import Tensor, nn

from latephase import Objective
from latephase.curvature import Linearization, linearize

BOTH = pytest.mark.parametrize("curvature", ["ggn", "hessian"])
OTHER = randn(11, 4, seed=20)
"""Other inputs of the same shape."""


def compare(one: Linearization, other: Linearization, tolerance: float = TIGHT) -> None:
    """Loss, gradient, products and quadratic form are the same."""
    v = randn(one.space.size, seed=30).to(one.space.dtype)
    product = other.matvec(v)
    assert relative(one.loss, other.loss) < tolerance
    assert relative(one.gradient, other.gradient) < tolerance
    for _ in range(2):
        assert relative(one.matvec(v), product) < tolerance
    form, scale = float(v @ product), float(v.norm() * product.norm())
    assert float(one.quadratic_form(v)) == pytest.approx(form, abs=tolerance * scale)


def right(objective: Objective, curvature: str = "ggn", **options) -> Linearization:
    """The linearisation by "auto", which is compared with one that knows no trace."""
    linearization = linearize(objective, curvature, **options)
    compare(linearization, linearize(objective, curvature, method="double_backward", **options))
    return linearization


def settled(objective: Objective, curvature: str = "ggn", **options) -> Linearization:
    """The third linearisation of an objective: traced, used twice, not compared again before the fourth use."""
    assert right(objective, curvature, **options).method != "traced"
    for _ in range(2):
        linearization = right(objective, curvature, **options)
        assert linearization.method == "traced", linearization.reason
    return linearization


def squared(model: nn.Module, inputs=VECTORS, targets=REALS, **options) -> Objective:
    return Objective(model, nn.MSELoss(), (inputs, targets), **options)


def mlp() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


class Calling(nn.Module):
    """A network whose forward pass is the given function of the hidden layer's values and itself."""

    def __init__(self, function: Callable[["Calling", Tensor], Tensor], **attributes):
        super().__init__()
        self.first, self.function, self.last = nn.Linear(4, 4), function, nn.Linear(4, 3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(inputs)))


def calling(function: Callable[[Calling, Tensor], Tensor], **attributes) -> Calling:
    model = seeded(lambda: Calling(function, **attributes))
    assert isinstance(model, Calling)
    return model


def dropping(*layers: nn.Module) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), *layers, nn.Linear(6, 3)).train())
