"""Rows of an objective made by `from_forward`, whose loss is a sum of functions of single numbers of the outputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from residual_cases import EDGE, INTERIOR, WEIGHTS, dense, edge, network, objective_of, poisson, uniform
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from latephase import GaussNewton, Objective
from latephase.curvature import linearize

EXACT = {"rtol": 1e-11, "atol": 1e-11}
"""Sums of float64 terms in another order."""


def test_rows_of_a_physics_informed_loss_are_those_of_its_residuals():
    model = network()

    def forward() -> tuple[Tensor, tuple[Tensor, Tensor]]:
        inside, outside = poisson(model, INTERIOR.clone()), edge(model, EDGE)
        weights = WEIGHTS["interior"] / len(inside), WEIGHTS["boundary"] / len(outside)
        return weights[0] * inside.square().sum() + weights[1] * outside.square().sum(), (inside, outside)

    curved, exact = linearize(Objective.from_forward(model, forward)), dense(model, WEIGHTS)
    torch.testing.assert_close(curved.loss, exact.loss, **EXACT)
    torch.testing.assert_close(curved.rows(), exact.rows, **EXACT)
    torch.testing.assert_close(torch.cat(list(curved.row_pieces(2))), exact.rows, **EXACT)


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(0, 1e3), shape=st.lists(st.integers(1, 4), min_size=0, max_size=2), bent=st.booleans())
def test_rows_make_up_the_matrix(factor, shape, bent):
    model = nn.Linear(3, max(shape[-1:], default=1)).double()
    x = uniform(*shape[:-1], 3, seed=2)

    def outputs(at: dict[str, Tensor]) -> Tensor:
        return functional_call(model, at, (x,))

    def forward() -> tuple[Tensor, Tensor]:
        z = model(x)
        return factor * (nn.functional.softplus(z).sum() if bent else 0.5 * z.square().sum()), z

    curved = linearize(Objective.from_forward(model, forward))
    start = {name: p.detach() for name, p in model.named_parameters()}
    found = jacrev(outputs)(start)
    z = outputs(start)
    jacobian = torch.cat([found[name].reshape(z.numel(), -1) for name in start], dim=1)
    slopes = z.sigmoid() * (1 - z.sigmoid()) if bent else torch.ones_like(z)
    expected = (factor * slopes).sqrt().reshape(-1, 1) * jacobian
    torch.testing.assert_close(curved.rows(), expected, **EXACT)


@pytest.mark.parametrize("name", ["norm", "concave", "coupled"])
def test_other_losses_are_refused(name):
    model = nn.Linear(3, 2).double()
    losses = {
        "norm": lambda z: z.norm(),
        "concave": lambda z: -z.square().sum(),
        "coupled": lambda z: z.square().sum() + z.sum().square(),
    }

    def forward() -> tuple[Tensor, Tensor]:
        z = model(uniform(4, 3, seed=2))
        return losses[name](z), z

    curved = linearize(Objective.from_forward(model, forward))
    with pytest.raises(ValueError, match="from_forward has rows where its loss is a sum of convex functions of single"):
        curved.rows()


@pytest.mark.parametrize("weighted", [False, True])
def test_residuals_elsewhere_are_those_of_the_loss(weighted):
    """Of two outputs, where the loss weighs them alike at both points; of residuals it is what acceleration needs."""
    model = network()
    factor = uniform(4, 2, seed=6) if weighted else torch.ones(4, 2, dtype=torch.float64)

    def forward() -> tuple[Tensor, tuple[Tensor, Tensor]]:
        inside, outside = poisson(model, INTERIOR.clone()), edge(model, EDGE)
        return 0.3 * inside.square().sum() + (factor * outside.square()).sum(), (inside, outside)

    curved = linearize(Objective.from_forward(model, forward))
    here, values = curved.residual(), curved.space.values()
    torch.testing.assert_close(curved.residual_at(values), here, **EXACT)
    torch.testing.assert_close(curved.rows().mT @ here, curved.gradient, **EXACT)
    moved = values + 1e-6 * uniform(len(values), seed=8)
    slope = (curved.residual_at(moved) - here) / 1e-6
    # A difference of first order: its error is 1e-6 times a second derivative.
    torch.testing.assert_close(slope, curved.rows() @ ((moved - values) / 1e-6), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loss", ["bent", "moving", "concave elsewhere"])
def test_there_are_none_where_the_scale_moves(loss):
    model = nn.Linear(3, 2).double()
    start = model.bias.detach().clone()

    def forward() -> tuple[Tensor, Tensor]:
        z = model(uniform(4, 3, seed=2))
        if loss == "bent":
            return nn.functional.softplus(z).sum(), z
        moved = (model.bias.detach() - start).sum()
        factor = 1 + moved if loss == "moving" else 1 - 1e9 * moved
        return factor * z.square().sum(), z

    curved = linearize(Objective.from_forward(model, forward))
    assert curved.residual_at(curved.space.values() + 1e-3) is None


def test_steps_are_those_of_the_residual_objective():
    """Acceleration included, which an objective made by `from_forward` knows the residuals for."""
    models, found = (network(), network()), []

    def forward() -> tuple[Tensor, tuple[Tensor, Tensor]]:
        inside, outside = poisson(models[0], INTERIOR.clone()), edge(models[0], EDGE)
        weights = WEIGHTS["interior"] / len(inside), WEIGHTS["boundary"] / len(outside)
        return weights[0] * inside.square().sum() + weights[1] * outside.square().sum(), (inside, outside)

    objectives = Objective.from_forward(models[0], forward), objective_of(model=models[1])
    for model, objective in zip(models, objectives, strict=True):
        optimizer = GaussNewton(model.parameters(), damping=1.0)
        accelerated = []
        for _ in range(4):
            optimizer.step(objective)
            accelerated.append(optimizer.report.accelerated)
        found.append((accelerated, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert found[0][0] == found[1][0]
    assert any(found[0][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-8, atol=1e-9)
