"""AdamQLR and SGDQLR against `qlr_oracle`, step by step for 50 steps: loss, learning rate, damping, parameters.

A difference between two float64 programs is rounding only while the trajectory does not amplify it. Exact line minima
followed by another factor do (steepest descent with relaxation is chaotic, so amplification is tried with SGD on the
neural networks only, where 50 steps are short), and so do saturated cross-entropy and negative curvature. Every
comparison therefore first starts the oracle a second time, 1e-12 away: it must stay within 1e-7 of itself. Rounding,
at 1e-16, is then below 1e-8 (2e-9 measured), and only another algorithm can miss the 1e-6 asked for.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from qlr_cases import CASES, NO_DATA, STEPS, Case
from qlr_oracle import MLP, Function, QuadraticLR, Record, Settings, SquaredError, run
from torch import nn

from latephase import SGDQLR, AdamQLR, DecreasingLoss, Fixed, LevenbergMarquardt

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lr_clip": {"lr_clip": 0.05},
    "amplification": {"amplification": 0.8},
    "absolute": {"absolute_curvature": True},
    "all": {
        "lr_clip": 0.25,
        "amplification": 1.2,
        "absolute_curvature": True,
        "reduction_ratio": "undamped",
    },
}


def optimizer_of(settings: Settings, model: nn.Module) -> AdamQLR | SGDQLR:
    s, rule = settings, Fixed(settings.damping, settings.reduction_ratio)
    if s.damping_factors is not None:
        make = LevenbergMarquardt if s.damping_rule == "ratio" else DecreasingLoss
        rule = make(s.damping, factors=s.damping_factors, range=s.damping_range, model=s.reduction_ratio)
    curvature = "absolute_hessian" if s.absolute_curvature else s.curvature
    options = {"curvature": curvature, "damping": rule, "lr_clip": s.lr_clip, "amplification": s.amplification}
    if s.adam:
        return AdamQLR(model.parameters(), betas=s.betas, eps=s.eps, **options)
    return SGDQLR(model.parameters(), **options)


def follow(settings: Settings, case: Case) -> list[Record]:
    """Take the steps with the oracle and the optimizer, and hold the second to the first at every one."""
    expected = run(settings, case.function, case.start, case.batches)
    nearby = run(settings, case.function, case.start * (1 + 1e-12), case.batches)
    assert [r.accepted for r in nearby] == [r.accepted for r in expected]
    for name in ("loss", "lr", "next_damping"):
        near, far = [[getattr(r, name) for r in records] for records in (nearby, expected)]
        assert near == pytest.approx(far, rel=1e-7), f"this trajectory amplifies rounding: {name}"
    optimizer = optimizer_of(settings, case.model)
    nn.utils.vector_to_parameters(torch.tensor(case.start), case.model.parameters())
    for step, (batch, record) in enumerate(zip(case.batches, expected, strict=True)):
        loss = float(optimizer.step(case.objective(batch)))
        report = optimizer.report
        theta = nn.utils.parameters_to_vector(case.model.parameters()).detach().numpy()
        measured = {
            "loss": loss,
            "reported loss": report.loss,
            "lr": report.lr,
            "damping": report.damping,
            "next damping": optimizer.damping,
            "slope": report.slope,
            "predicted change": report.predicted_change,
            "norm": float(np.linalg.norm(theta)),
        }
        wanted = {
            "loss": record.loss,
            "reported loss": record.loss,
            "lr": record.lr if record.accepted else 0.0,
            "damping": record.damping,
            "next damping": record.next_damping,
            "slope": record.slope,
            "predicted change": record.predicted,
            "norm": float(np.linalg.norm(record.theta)),
        }
        assert (step, report.accepted) == (step, record.accepted)
        if settings.damping_factors is None:
            assert report.new_loss is None
        else:
            measured["new loss"], wanted["new loss"] = (
                report.new_loss,
                record.new_loss if record.accepted else record.loss,
            )
        assert measured == pytest.approx(wanted, rel=1e-6, nan_ok=True), f"step {step}"
        np.testing.assert_allclose(theta, record.theta, rtol=1e-6, atol=1e-9, err_msg=f"step {step}")
    return expected


BATCHES = ("regression_batches", "classification_batches")
FULL = ("regression", "classification")
NETWORK = {"damping": 1.0, "damping_factors": (0.95, 1.2)}
ROSENBROCK = {"damping": 1e-3, "damping_factors": (0.5, 2.0)}


def grid() -> Iterator[Any]:
    """Directions x curvatures x rules x variants x cases; the cases take turns, and what is not its turn is slow.

    Not among them is what amplifies rounding on Rosenbrock's function: amplification for SGD.
    """
    for adam, curvature, rule in itertools.product((True, False), ("ggn", "hessian"), ("ratio", "decreasing_loss")):
        rosenbrock = "rosenbrock" if curvature == "ggn" else "rosenbrock_plain"
        paired = (curvature == "ggn") == (rule == "ratio")
        for index, variant in enumerate(VARIANTS):
            if curvature == "ggn" and VARIANTS[variant].get("absolute_curvature"):
                continue  # it has no negative curvature
            turn = (index + (curvature == "ggn")) % 2
            names = BATCHES + (FULL if variant in ("plain", "all") else ())
            if variant != "all" and (adam or variant != "amplification"):
                names += (rosenbrock,)
            now = {
                "plain": {BATCHES[turn], rosenbrock} | ({FULL[turn]} if adam else set()),
                "all": {BATCHES[turn]} if adam or paired else set(),
                "absolute": {rosenbrock} if adam and not paired else set(),
            }.get(variant, {BATCHES[turn]} if adam and paired else set())
            for name in names:
                options = (ROSENBROCK if name == rosenbrock else NETWORK) | VARIANTS[variant]
                settings = Settings(adam=adam, curvature=curvature, damping_rule=rule, **options)
                label = f"{name}-{'adam' if adam else 'sgd'}-{curvature}-{rule}-{variant}"
                yield pytest.param(settings, CASES[name], id=label, marks=() if name in now else pytest.mark.slow)


@pytest.mark.parametrize(("settings", "case"), list(grid()))
def test_fifty_steps_agree(settings: Settings, case: Case):
    follow(settings, case)


def test_every_variant_makes_a_difference():
    case, base = CASES["regression_batches"], Settings(**NETWORK)
    plain = run(base, case.function, case.start, case.batches)[-1].theta
    for name, options in VARIANTS.items():
        theta = run(dataclasses.replace(base, **options), case.function, case.start, case.batches)[-1].theta
        # The Gauss-Newton matrix has no negative curvature; "saddle" is for that.
        same = name in ("plain", "absolute")
        assert np.allclose(theta, plain, rtol=0, atol=0) == same, name
        assert same or np.abs(theta - plain).max() > 1e-2, name


@pytest.mark.parametrize(("name", "model"), [("classification", "damped"), ("classification_batches", "undamped")])
def test_ratio_rule_lowers_keeps_and_raises_the_damping(name: str, model):
    """With nearly twice the best learning rate the ratio is anywhere."""
    settings = Settings(adam=False, amplification=1.8, reduction_ratio=model, **NETWORK)
    records = follow(settings, CASES[name])
    factors = {round(r.next_damping / r.damping, 9) for r in records}
    assert factors == {0.95, 1.0, 1.2}


@pytest.mark.parametrize("adam", [True, False], ids=["adam", "sgd"])
@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_rejected_steps_agree(adam: bool, curvature):
    """With more than twice the best learning rate the loss rises until the damping has grown."""
    settings = Settings(
        adam=adam,
        curvature=curvature,
        damping=0.1,
        damping_factors=(0.9, 1.5),
        damping_rule="decreasing_loss",
        amplification=2.2,
    )
    records = follow(settings, CASES["regression"])
    rejected = [i for i, r in enumerate(records) if not r.accepted]
    assert len(rejected) >= 5
    for i in rejected:  # nothing of a rejected step is left: the next one has the same direction
        assert records[i].next_damping == pytest.approx(1.5 * records[i].damping)
        if i + 1 < STEPS:
            np.testing.assert_array_equal(records[i + 1].direction, records[i].direction)


def test_every_limit_takes_hold():
    """The learning rate is clipped in some steps, and not in others."""
    settings = Settings(curvature="hessian", **NETWORK, **VARIANTS["all"])
    records = follow(settings, CASES["classification_batches"])
    assert 5 < sum("lr" in r.limited for r in records) < STEPS - 5


@pytest.mark.parametrize("absolute", [True, False])
def test_negative_curvature(absolute: bool):
    """Its sign decides whether the step climbs, to be rejected, or falls."""
    settings = Settings(
        adam=False,
        curvature="hessian",
        damping_rule="decreasing_loss",
        absolute_curvature=absolute,
        **ROSENBROCK,
    )
    records = follow(settings, CASES["saddle"])
    if absolute:
        assert any("curvature" in r.limited for r in records)
        assert all(r.lr > 0 for r in records)
    else:
        assert any(r.lr < 0 and not r.accepted for r in records)


def test_a_trial_value_that_is_not_a_number_is_a_rejection():
    settings = Settings(
        adam=False, curvature="hessian", damping=1e-2, damping_factors=(0.7, 2.0), damping_rule="decreasing_loss"
    )
    case = CASES["barrier"]
    records = follow(settings, dataclasses.replace(case, batches=case.batches[:8]))  # then it is at the minimum
    assert any(np.isnan(r.new_loss) and not r.accepted for r in records)
    assert any(np.isfinite(r.new_loss) and r.accepted for r in records)


def test_the_ratio_rule_takes_such_a_step_and_keeps_the_damping():
    case, settings = CASES["barrier"], Settings(adam=False, curvature="hessian", damping=1e-2)
    (record,) = follow(settings, dataclasses.replace(case, start=np.full(3, 3.0), batches=[NO_DATA]))
    assert np.isnan(record.new_loss)
    assert record.accepted
    assert record.next_damping == record.damping


def test_constant_damping_takes_every_step():
    settings = Settings(
        adam=False, damping=0.1, damping_factors=None, damping_rule="decreasing_loss", amplification=2.2
    )
    records = follow(settings, CASES["classification"])
    assert any(r.new_loss > r.loss for r in records)
    assert all(r.accepted and r.next_damping == 0.1 for r in records)


# The oracle itself.


@pytest.mark.parametrize("name", CASES)
def test_derivatives_along_a_direction_are_those_of_the_dense_matrices(name: str):
    case, rng = CASES[name], np.random.default_rng(7)
    for _ in range(3):
        theta = case.start * np.exp(0.1 * rng.standard_normal(len(case.start)))
        d, batch = rng.standard_normal(len(theta)), case.batches[0]
        gradient, ggn, hessian = case.function.dense(theta, batch)
        scale = np.abs(hessian).sum()  # complex steps are exact to rounding, sums cancel
        np.testing.assert_allclose(case.function.gradient(theta, batch), gradient, rtol=1e-10, atol=1e-12 * scale)
        assert case.function.curvature(theta, d, batch, "ggn") == pytest.approx(d @ ggn @ d, rel=1e-10)
        measured = case.function.curvature(theta, d, batch, "hessian")
        assert measured == pytest.approx(d @ hessian @ d, rel=1e-10, abs=1e-12 * scale)
        np.testing.assert_allclose(hessian, hessian.T, rtol=1e-10, atol=1e-12 * scale)


def test_rosenbrock_by_hand():
    function, theta = CASES["rosenbrock"].function, np.array([1.0, -1.0])
    gradient, ggn, hessian = function.dense(theta, NO_DATA)
    assert function.value(theta, NO_DATA) == 400
    np.testing.assert_allclose(gradient, [800, -400], rtol=1e-14)
    np.testing.assert_allclose(ggn, [[802, -400], [-400, 200]], rtol=1e-14)
    np.testing.assert_allclose(hessian, [[1602, -400], [-400, 200]], rtol=1e-14)


def test_curvature_is_that_of_the_loss_minimised():
    """With three outputs, half the sum of squares over them is 3/2 of torch.nn.MSELoss, and so is its curvature."""
    network, theta, batch = MLP((3, 4, 3)), CASES["regression"].start, CASES["regression"].batches[0]
    d = np.ones_like(theta)
    for kind in ("ggn", "hessian"):
        half = Function(network, SquaredError("half")).curvature(theta, d, batch, kind)
        mean = Function(network, SquaredError("mean")).curvature(theta, d, batch, kind)
        assert half == pytest.approx(1.5 * mean, rel=1e-12)
    z, first, _ = network.jet(theta, d, batch[0])
    assert SquaredError("half").curvature(z, first, batch[1]) == pytest.approx((first**2).sum() / len(z), rel=1e-12)


def test_first_adam_direction_is_the_sign_of_the_gradient():
    case = CASES["regression"]
    g = case.function.gradient(case.start, case.batches[0])
    assert np.abs(g).min() > 1e-3  # so that eps = 1e-8 changes the direction by 1e-5 at most
    record = QuadraticLR(Settings(), case.start).step(case.function, case.batches[0])
    np.testing.assert_allclose(record.direction, np.sign(g), rtol=1e-5)


def test_directions_are_those_of_torch_adam():
    optimizer, rng = QuadraticLR(Settings(betas=(0.8, 0.95), eps=1e-3), np.zeros(4)), np.random.default_rng(0)
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    adam = torch.optim.Adam([p], lr=1.0, betas=(0.8, 0.95), eps=1e-3)
    for _ in range(5):
        g, before = rng.standard_normal(4), p.detach().numpy().copy()
        p.grad = torch.tensor(g)
        adam.step()
        np.testing.assert_allclose(before - p.detach().numpy(), optimizer.direction(g), rtol=1e-12, atol=1e-12)


def test_damping_within_the_prediction_drives_the_ratio_to_two():
    """Q = -0.5 alpha g'd for an unmodified step, where a short step changes the loss by -alpha g'd."""
    case = CASES["regression"]
    settings = Settings(adam=False, damping=1e4)
    record = QuadraticLR(settings, case.start).step(case.function, case.batches[0])
    predicted = -0.5 * record.lr * float(record.direction @ record.direction)
    assert (record.new_loss - record.loss) / predicted == pytest.approx(2, abs=1e-3)
    assert record.next_damping == pytest.approx(0.5 * 1e4)
