"""Quadratic learning rates where the answer is known: quadratics, clipped rates, other bases."""

import copy

import pytest
import torch
from quadratic_lr_bases import BASES, cross_entropy, steps

from latephase import SGDQLR, AdamQLR, Fixed, QuadraticLearningRate
from latephase.optim.quadratic_lr.base import propose


def least_squares(function, *start):
    """0.5 |A x - b|^2, whose GGN is exact, with A'A and A'b."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, len(start), generator=generator, dtype=torch.float64)
    b = torch.randn(6, generator=generator, dtype=torch.float64)

    def f(x):
        residual = a @ x - b
        return 0.5 * residual.square().sum(), residual

    point, objective = function(f, *start)
    return point, objective, a.T @ a, a.T @ b


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_that_is_always_clipped_is_the_base_with_that_lr(base, dtype, toy, flat):
    lr = 1e-6  # so small that float32 parameters would swallow half of the digits of the direction
    model, data = toy.network(dtype=dtype), toy.batch(dtype=dtype)
    twin = copy.deepcopy(model)
    plain = BASES[base](twin.parameters())
    for group in plain.param_groups:
        group["lr"] = lr
    optimizer = QuadraticLearningRate(BASES[base](model.parameters()), lr_clip=lr, damping=Fixed(0.0))
    for _ in range(5):
        optimizer.step(cross_entropy(model, data))
        plain.step(cross_entropy(twin, data))
        assert optimizer.report.lr == lr
    # Two paths of a few roundings each, of the parameters and, 1e6 times smaller, of the steps.
    torch.testing.assert_close(flat(model), flat(twin), rtol=4 * torch.finfo(dtype).eps, atol=1e-7 * lr)


@pytest.mark.parametrize("base", BASES)
def test_the_direction_is_right_to_rounding_beside_large_parameters(base, function):
    """Theta - (theta - lr d) in float32 would have no digit of d, theta being 1e8 times larger."""
    directions = []
    for dtype in (torch.float32, torch.float64):
        point, objective = function(lambda x: (x.sum(), x), 1e6, -1e6, 3e5)
        optimizer = BASES[base](point.to(dtype).parameters())
        for group in optimizer.param_groups:
            group["weight_decay"] *= 1e-7  # so that the decay is about as large as the rest of the direction
        space = objective.space([point.x])
        for slope in (1e-3, 3e-2):
            gradient = torch.tensor([slope, 2 * slope, -slope], dtype=dtype)
            proposal = propose(optimizer, space, gradient)
            proposal.accept()
        directions.append(proposal.direction.double())
    # A dozen operations in float32; Adadelta's and Adagrad's state starts at 1e-6 or less beside what is added to it.
    torch.testing.assert_close(*directions, rtol=12 * torch.finfo(torch.float32).eps, atol=0)


def test_without_damping_sgdqlr_minimises_a_quadratic_along_the_gradient(function):
    point, objective, curvature, constant = least_squares(function, 3.0, -2.0, 1.0)
    optimizer = SGDQLR(point.parameters(), damping=Fixed(0.0))
    for _ in range(20):
        x = point.x.detach().clone()
        g = curvature @ x - constant
        optimizer.step(objective)
        lr = float(g @ g / (g @ curvature @ g))
        assert optimizer.report.lr == pytest.approx(lr, rel=1e-10)  # float64, well conditioned
        torch.testing.assert_close(point.x.detach(), x - lr * g, rtol=1e-10, atol=1e-12)
        slope = (curvature @ point.x.detach() - constant) @ g
        assert abs(float(slope)) < 1e-10 * float(g @ g)
        assert optimizer.report.new_loss is None
        assert optimizer.report.reduction_ratio is None


def test_a_quadratic_is_predicted_exactly(function):
    point, objective, *_ = least_squares(function, 3.0, -2.0, 1.0)
    optimizer = AdamQLR(point.parameters(), damping={"initial": 1.0, "model": "undamped"})
    for _ in range(10):
        optimizer.step(objective)
        report = optimizer.report
        assert report.new_loss - report.loss == pytest.approx(report.predicted_change, rel=1e-9)
        assert report.reduction_ratio == pytest.approx(1.0, rel=1e-9)
    assert optimizer.damping == pytest.approx(0.5**10)


def test_the_damped_ratio_is_biased_upwards(function):
    point, objective, *_ = least_squares(function, 3.0, -2.0, 1.0)
    optimizer = AdamQLR(point.parameters(), damping={"initial": 1e6, "factors": (1.0, 1.0)})
    optimizer.step(objective)
    assert optimizer.report.reduction_ratio == pytest.approx(2.0, rel=1e-4)  # 2 - O(curvature / damping)


def test_chunks_are_the_same_function(toy, flat):
    model, data = toy.network(), toy.batch()
    twin = copy.deepcopy(model)
    whole, cut = AdamQLR(model.parameters(), lr_clip=0.1), AdamQLR(twin.parameters(), lr_clip=0.1)
    for _ in range(5):
        whole.step(cross_entropy(model, data, weight_decay=0.1))
        cut.step(cross_entropy(twin, data, weight_decay=0.1, microbatch_size=6))
        assert cut.report.lr == pytest.approx(whole.report.lr, rel=1e-9)
    torch.testing.assert_close(flat(twin), flat(model), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("base", ["Adam", "AdamW", "SGD", "SGD with weight decay"])
def test_narrow_parameters_train(base, toy):
    dtype = torch.bfloat16 if "Adam" in base else torch.float16  # where eps=1e-8 of Adam is zero
    model, data = toy.network(dtype=dtype), toy.batch(dtype=dtype)
    optimizer = QuadraticLearningRate(BASES[base](model.parameters()), lr_clip=0.1 if "Adam" in base else 1.0)
    losses = [loss for loss, _ in steps(optimizer, cross_entropy(model, data), 40)]
    assert losses[-1] < 0.8 * losses[0]
    moments = [entry.get("exp_avg", entry.get("momentum_buffer")) for entry in optimizer.state.values()]
    assert {moment.dtype for moment in moments if moment is not None} <= {dtype}
