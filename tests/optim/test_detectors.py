"""Detectors of diffusion: each statistic against NumPy's from the recorded run, and a known stationary state."""

import importlib
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from detector_table import OPTIMIZERS, Run
from hypothesis import given, settings
from hypothesis import strategies as st

from latephase.optim.late_phase import SASA, Distance, GradientNorm, Pflug, Slope, default_detector
from latephase.student import student_quantile

STEPS = 160


def watched(detector, optimizer="SGD", steps=STEPS):
    """A run that is recorded, with a detector that watches it."""
    run = Run(optimizer, record=True)
    detector.watch(run.optimizer)
    run.go(steps)
    return run


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_distance_is_the_slope_of_the_recorded_distances(optimizer):
    detector = Distance(first=4)
    run = watched(detector, optimizer)
    start = run.seen[0]["before"]
    at = [math.floor(1.5**k) for k in range(4, 20) if 1.5**k <= STEPS]
    logs = [math.log(np.sum((run.seen[n - 1]["after"] - start) ** 2)) for n in at]
    expected = [(b - a) / math.log(1.5) for a, b in itertools.pairwise(logs)]
    assert [step for step, _ in detector.history] == at[1:]
    np.testing.assert_allclose([value for _, value in detector.history], expected, rtol=1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sasa_is_the_papers_statistic_of_the_recorded_steps(optimizer):
    detector = SASA(least=20, share=0.25, every=20, significance=0.1)
    run = watched(detector, optimizer)
    rate = run.optimizer.param_groups[0]["lr"]
    values = []
    for each in run.seen:  # <x_k, d_k> - alpha/2 |d_k|^2 as the paper writes it
        d = (each["before"] - each["after"]) / rate
        values.append(each["before"] @ d - rate / 2 * d @ d)
    expected = []
    for n in range(80, STEPS + 1, 20):
        newest = np.array(values[n - math.ceil(n / 4) : n])
        b = math.isqrt(len(newest))
        m = len(newest) // b
        batches = newest[len(newest) - m * b :].reshape(m, b).mean(1)
        error = math.sqrt(b * np.sum((batches - newest.mean()) ** 2) / (m - 1) / len(newest))
        expected.append(newest.mean() / (scipy.stats.t.ppf(0.95, m - 1) * error))
    assert [step for step, _ in detector.history] == list(range(80, STEPS + 1, 20))
    # Terms are differences of |theta|^2, about 10, divided by twice a rate of 0.01: 1e-15 becomes 1e-12 of values of 1.
    np.testing.assert_allclose([value for _, value in detector.history], expected, rtol=1e-7)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 33, 100, 4_999, 9_999, 10_000, 10**9])
@pytest.mark.parametrize("p", [1e-4, 0.025, 0.2, 0.5, 0.6, 0.9999])
def test_quantiles_are_those_of_scipy(freedom, p):
    # Scipy's own are good to some 1e-12; at p = 1/2 both are zero but for rounding.
    assert student_quantile(freedom, p) == pytest.approx(scipy.special.stdtrit(freedom, p), rel=1e-11, abs=1e-15)


def test_quantiles_of_one_and_two_degrees_are_in_closed_form():
    for p in (1e-6, 0.1, 0.7):
        assert student_quantile(1, p) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9)
        assert student_quantile(2, p) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-9)


def test_slope_is_that_of_scipys_regression():
    detector = Slope(least=20, share=0.5, every=20)
    run = watched(detector)
    losses = [each["loss"] for each in run.seen]
    for n, value in detector.history:
        newest = losses[n - math.ceil(n / 2) : n]
        fit = scipy.stats.linregress(np.arange(len(newest)), newest)
        assert value == pytest.approx(fit.slope / fit.stderr, rel=1e-9)
    assert [step for step, _ in detector.history] == list(range(40, STEPS + 1, 20))


@pytest.mark.parametrize("every", [10, 0.2])
def test_slope_fires_at_the_first_test_that_finds_no_fall(every):
    detector = Slope(significance=0.3, least=10, share=0.5, every=every)
    run = watched(detector, steps=400)
    losses, at = [each["loss"] for each in run.seen], 10 if every == 10 else 100
    while True:
        newest = losses[at - math.ceil(at / 2) : at]
        if len(newest) >= 10 and scipy.stats.linregress(range(len(newest)), newest, alternative="less").pvalue >= 0.3:
            break
        at = at + 10 if every == 10 else math.ceil(1.2 * at)
    assert detector.since == at


def test_pflug_is_the_sum_of_the_recorded_inner_products():
    detector = Pflug(burn_in=15, every=10)
    run = watched(detector, "Adam")
    gradients = [each["gradient"] for each in run.seen]
    for n, value in detector.history:
        expected = sum(gradients[i] @ gradients[i - 1] for i in range(15, n))
        assert value == pytest.approx(expected, rel=1e-10)
    assert detector.history


def test_gradient_norm_is_over_the_largest_mean():
    detector = GradientNorm(every=20)
    run = watched(detector)
    norms = np.array([np.linalg.norm(each["gradient"]) for each in run.seen]).reshape(-1, 20).mean(1)
    np.testing.assert_allclose([v for _, v in detector.history], norms / np.maximum.accumulate(norms), rtol=1e-12)


def test_several_rates_weigh_their_groups():
    run = Run()
    first, *rest = run.model.parameters()
    run.optimizer = torch.optim.SGD([{"params": [first], "lr": 0.01}, {"params": rest}], lr=0.05)
    detector = SASA(least=10, share=1.0, every=10)
    detector.watch(run.optimizer)
    norms = []
    for _ in range(10):
        norms.append([float(first.detach().square().sum()), sum(float(p.detach().square().sum()) for p in rest)])
        run.step()
    norms.append([float(first.detach().square().sum()), sum(float(p.detach().square().sum()) for p in rest)])
    falls = -np.diff(np.array(norms), axis=0) / (2 * np.array([0.01, 0.05]))
    np.testing.assert_allclose(detector.state_dict()["kept"]["series"]["numbers"], falls.sum(1), rtol=1e-9)


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_benchmarks_rules_are_those_of_the_detectors(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    quadratics = importlib.import_module("detectors_quadratics")
    monkeypatch.setattr(quadratics, "SIZE", 6)
    problem = quadratics.Quadratic(10, 0.5, 50.0, 0.05, 0.5)
    facts = quadratics.known(problem, 400)
    made = [
        lambda: Distance(first=2),
        lambda: SASA(least=10, share=0.5, every=10),
        lambda: Slope(least=10, share=0.5, every=0.2),
        lambda: Pflug(burn_in=5, every=10),
        lambda: GradientNorm(every=10),
    ]
    alone = [[make() for make in made] for _ in range(3)]

    def see(theta, gradients, losses):
        for seed, detectors in enumerate(alone):
            for detector in detectors:
                detector.update([theta[seed]], gradients=[gradients[seed]], loss=losses[seed], lr=problem.rate)

    torch.manual_seed(0)
    first = see_first(quadratics, problem, facts)
    for seed, detectors in enumerate(alone):
        for detector in detectors:
            detector.start([first[seed]], lr=problem.rate)
    seen = quadratics.simulate(problem, facts, 400, 3, 0, see)
    for index, make in enumerate(made):
        expected = [math.inf if each[index].since is None else each[index].since for each in alone]
        assert quadratics.fires(make(), seen).tolist() == expected


def see_first(quadratics, problem, facts):
    """Where the seeds begin: what `simulate` draws first."""
    generator = torch.Generator().manual_seed(0)
    minimum = facts.offset * torch.randn(3, quadratics.SIZE, generator=generator)
    return minimum + facts.offset * torch.randn(3, quadratics.SIZE, generator=generator).sign()


def test_the_benchmarks_expected_loss_is_that_of_its_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    quadratics = importlib.import_module("detectors_quadratics")
    monkeypatch.setattr(quadratics, "SIZE", 20)
    for momentum in (0.0, 0.8):
        problem = quadratics.Quadratic(10, 1.0, 30.0, 0.05, momentum)
        facts = quadratics.known(problem, 300)
        seen = quadratics.simulate(problem, facts, 300, 2000, 0, noise=0.0)
        means, errors = seen.losses.mean(1), seen.losses.std(1) / math.sqrt(2000)
        # Of 300 means of 2000 each, one may be 4 standard errors off with a probability of 2 %.
        assert bool(((means - torch.from_numpy(facts.losses)).abs() < 4 * errors + 1e-6).all())


@given(
    share=st.floats(0.05, 1.0),
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60),
    bad=st.sets(st.integers(0, 59), max_size=5),
)
@settings(max_examples=40, deadline=None)
def test_losses_that_are_not_finite_are_left_out(share, values, bad):
    detector = Slope(least=4, share=share, every=5)
    parameters = [torch.zeros(1)]
    detector.start(parameters)
    given = [math.nan if i in bad else v for i, v in enumerate(values)]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in given:
            detector.update(parameters, loss=value)
    kept = given[: len(given) // 5 * 5]
    newest = [v for v in kept[len(kept) - math.ceil(share * len(kept)) :] if math.isfinite(v)]
    if detector.history and detector.history[-1][0] == len(kept):
        fit = scipy.stats.linregress(np.arange(len(newest)), newest)
        # The slope of values that are nearly on a line is divided by a residual that is rounding.
        if fit.rvalue**2 < 1 - 1e-6 and np.std(newest) > 1e-6 * (1 + np.max(np.abs(newest))):
            assert detector.statistic == pytest.approx(fit.slope / fit.stderr, rel=1e-5, abs=1e-5)
    else:
        assert len(newest) < 4 or np.ptp(newest) == 0 or not kept or detector.statistic is None or len(newest) < 4


@pytest.mark.slow
def test_a_quadratic_whose_stationary_time_is_known():
    """Isotropic: the expected loss is within twice its stationary value after log(R) / (2 alpha h) steps."""
    rate, ratio, size = 6e-4, 1e3, 50
    known = math.log(ratio) / (2 * rate)
    stationary = rate / (2 - rate) * size / 2  # of E|x|^2 / 2
    generator = torch.Generator().manual_seed(1)
    x = torch.full((size,), math.sqrt(2 * stationary * ratio / size))
    detector = default_detector()
    detector.start([x], lr=rate)
    for _ in range(int(2.5 * known)):
        gradient = x + torch.randn(size, generator=generator)
        noise = stationary * torch.randn((), generator=generator)
        loss = 0.5 * x.square().sum() + noise
        x -= rate * gradient
        detector.update([x], gradients=[gradient], loss=loss, lr=rate)
    assert detector.since is not None
    assert known < detector.since < 2 * known
