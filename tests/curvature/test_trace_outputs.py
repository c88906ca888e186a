"""Traces of models with several outputs."""

from collections.abc import Callable

import pytest
import torch
from dense_oracle import relative
from product_cases import REALS, REFUSAL, TIGHT, VECTORS, randn, seeded
from torch import Tensor, nn
from trace_cases import right

from latephase import Objective
from latephase.curvature import linearize

pytestmark = pytest.mark.usefixtures("same_numbers")


class MeanAndVariance(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.mean, self.variance = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.trunk(inputs))
        return self.mean(h), nn.functional.softplus(self.variance(h)) + 0.1


class Named(nn.Module):
    """Outputs by name, one of them computed from another."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.trunk(inputs))
        return {"hidden": h, "logits": self.head(h), "nothing": torch.ones(3)}


def of_named(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return (outputs["logits"] - targets).pow(2).mean() + (outputs["hidden"] * outputs["logits"]).pow(2).sum()


def jacobian_of(model: nn.Module, outputs_of: Callable[[], Tensor]) -> Tensor:
    rows = []
    for entry in outputs_of().reshape(-1):
        slopes = torch.autograd.grad(entry, list(model.parameters()), retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([slope.reshape(-1) for slope in slopes]))
    return torch.stack(rows)


@pytest.mark.parametrize("method", ["auto", "traced", "linearize", "double_backward"])
def test_mean_and_variance(method):
    model = seeded(MeanAndVariance)
    jacobian = jacobian_of(model, lambda: torch.cat(model(VECTORS)))
    _, variance = model(VECTORS)
    diagonal = torch.cat([1.0 / variance, 0.5 / variance.square()]).reshape(-1).detach() / variance.numel()
    matrix = jacobian.T @ (diagonal[:, None] * jacobian)
    objective = Objective(model, nn.GaussianNLLLoss(), (VECTORS, REALS))
    loss = nn.GaussianNLLLoss()(model(VECTORS)[0], REALS, model(VECTORS)[1])
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
    v = randn(len(matrix), seed=1)
    try:
        for _ in range(3):
            linearization = linearize(objective, method=method)
            assert relative(linearization.loss, loss.detach()) < TIGHT
            assert relative(linearization.gradient, gradient) < TIGHT
            assert relative(linearization.matvec(v), matrix @ v) < TIGHT
            assert float(linearization.quadratic_form(v)) == pytest.approx(float(v @ matrix @ v), rel=TIGHT)
    except RuntimeError as refusal:  # torch's loss asks whether a variance is negative
        assert method in ("traced", "linearize")
        assert REFUSAL.search(str(refusal)), refusal  # noqa: PT017
        return
    chunked = Objective(model, nn.GaussianNLLLoss(), (VECTORS, REALS), microbatch_size=4)
    assert relative(linearize(chunked, method=method).matvec(v), matrix @ v) < TIGHT


@pytest.mark.parametrize("method", ["auto", "traced", "linearize", "double_backward"])
def test_outputs_by_name(method):
    model = seeded(Named)

    def flat() -> Tensor:
        outputs = model(VECTORS)
        return torch.cat([outputs["hidden"], outputs["logits"]])

    def loss_of(z: Tensor) -> Tensor:
        hidden, logits = z.view(-1, 3).split(len(VECTORS))
        return of_named({"hidden": hidden, "logits": logits}, REALS)

    inner = torch.autograd.functional.hessian(loss_of, flat().detach().reshape(-1))
    jacobian = jacobian_of(model, flat)
    matrix = jacobian.T @ inner @ jacobian
    objective = Objective(model, of_named, (VECTORS, REALS))
    for _ in range(3):
        linearization = linearize(objective, method=method)
        v = randn(len(matrix), seed=1)
        assert relative(linearization.matvec(v), matrix @ v) < TIGHT
        assert float(linearization.quadratic_form(v)) == pytest.approx(float(v @ matrix @ v), rel=TIGHT)
    assert linearization.method == ("traced" if method == "auto" else method)
    right(objective, "hessian")
    right(objective, "hessian")
