"""What holds for every detector: hooks, resuming, copies, rates, parameters, bad input."""

import copy
import io
import itertools
import pickle
import warnings

import pytest
import torch
from detector_table import DETECTORS, OPTIMIZERS, Run, every_detector, known
from torch import nn

from latephase import HessianFree, Objective
from latephase.optim.late_phase import Distance, Slope

pytestmark = pytest.mark.filterwarnings("error")


detector = every_detector


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_watching_leaves_training_as_it_is(detector, optimizer):
    with detector.watch((run := Run(optimizer)).optimizer):
        run.go(30)
    assert detector.steps == 30
    assert torch.equal(torch.tensor(run.flat()), torch.tensor(Run(optimizer).go(30).flat()))


def test_by_hand_is_as_by_hooks(detector):
    other, run, by_hand = copy.deepcopy(detector), Run(), Run()
    detector.watch(run.optimizer)
    run.go(60)
    other.start(by_hand.model.parameters(), lr=0.05)
    for _ in range(60):
        loss = by_hand.optimizer.step(by_hand.closure)
        by_hand.steps += 1
        other.update(by_hand.model.parameters(), loss=loss, lr=0.05)
    assert known(detector) == known(other)


def test_a_run_that_is_resumed_goes_on_bit_for_bit(detector):
    fresh, run = copy.deepcopy(detector), Run()
    whole = copy.deepcopy(detector)
    other = Run()
    whole.watch(other.optimizer)
    other.go(90)
    with detector.watch(run.optimizer):
        run.go(43)
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    fresh.watch(run.optimizer)
    run.go(47)
    assert known(fresh) == known(whole)
    for name, value in fresh.state_dict()["kept"].items():
        assert repr(value) == repr(whole.state_dict()["kept"][name])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_know_the_same_and_watch_nothing(detector, copied):
    run = Run()
    detector.watch(run.optimizer)
    run.go(40)
    other = copied(detector)
    assert known(other) == known(detector)
    assert repr(other) == repr(detector)
    other.watch(Run().optimizer)  # refused, if it still watched one


def test_an_optimizer_that_is_watched_can_be_pickled_and_copied(detector):
    run = Run()
    detector.watch(run.optimizer)
    run.go(2)
    pickle.dumps(copy.deepcopy(run.optimizer).state_dict())


def test_a_detector_watches_one_optimizer_at_a_time(detector):
    run = Run()
    handle = detector.watch(run.optimizer)
    with pytest.raises(RuntimeError, match="remove"):
        detector.watch(run.optimizer)
    handle.remove()
    run.go(3)
    assert detector.steps == 0
    assert not handle.active


def test_another_rate_begins_anew_where_it_was_set(detector):
    run = Run()
    detector.watch(run.optimizer)
    run.go(55)
    run.optimizer.param_groups[0]["lr"] = 0.01
    fresh = type(detector)(**detector.settings)
    other = Run()
    other.go(55)
    other.optimizer.param_groups[0]["lr"] = 0.01
    fresh.watch(other.optimizer)
    run.go(100)
    other.go(100)
    assert detector.steps == 155
    assert detector.statistic == fresh.statistic
    assert detector.since == (None if fresh.since is None else fresh.since + 55)


def test_a_rate_that_moves_a_little_is_the_same_run():
    detector, run = Distance(), Run()
    detector.watch(run.optimizer)
    for n in range(20):
        run.optimizer.param_groups[0]["lr"] = 0.05 * (1 - 0.001 * n)
        run.step()
    assert detector._origin == 0
    run.optimizer.param_groups[0]["lr"] = 0.05 * 0.949  # of the rate at the beginning, not of the last one
    run.step()
    assert detector._origin == 20


def test_parameters_that_come_later_begin_anew(detector):
    run = Run()
    detector.watch(run.optimizer)
    run.go(20)
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.float64))], "lr": 0.1})
    run.go(25)
    assert detector.steps == 45
    assert detector._origin == 20


def test_frozen_parameters_and_missing_gradients_count_for_nothing(detector):
    run, plain = Run(), Run()
    plain_detector = copy.deepcopy(detector)
    frozen = nn.Parameter(torch.full((3,), 1e9, dtype=torch.float64), requires_grad=False)
    idle = nn.Parameter(torch.zeros(3, dtype=torch.float64))  # trained, but in no loss
    run.optimizer.param_groups[0]["params"] += [frozen, idle]
    detector.watch(run.optimizer)
    plain_detector.watch(plain.optimizer)
    run.go(100)
    plain.go(100)
    assert known(detector)[:2] == known(plain_detector)[:2]
    if plain_detector.statistic is not None:  # the default one does not test so early
        assert detector.statistic == pytest.approx(plain_detector.statistic, rel=1e-9)


def test_reset_forgets_everything_but_settings(detector):
    run = Run()
    detector.watch(run.optimizer)
    run.go(40)
    detector.reset()
    assert known(detector) == (0, None, None, [])
    run.go(5)  # it still watches
    assert detector.steps == 5


def test_a_detector_that_has_fired_stays_so():
    run, detector = Run(), Distance(threshold=1.99, first=1)
    detector.watch(run.optimizer)
    run.go(10)
    since = detector.since
    run.go(30)
    assert detector.in_diffusion
    assert detector.since == since


def test_the_hooks_of_others_keep_their_places(detector):
    run, order = Run(), []
    run.optimizer.register_step_pre_hook(lambda *_: order.append("before"))
    run.optimizer.register_step_post_hook(lambda *_: order.append((detector.steps, "first")))
    detector.watch(run.optimizer)
    run.optimizer.register_step_post_hook(lambda *_: order.append((detector.steps, "last")))
    run.go(1)
    assert order == ["before", (0, "first"), (1, "last")]


def test_the_first_value_of_a_closure_is_the_loss():
    detector = Slope(least=4, share=1.0, every=4)
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([weight], lr=0.1, max_iter=3)
    detector.watch(optimizer)
    firsts, calls = [], []

    def closure():
        optimizer.zero_grad()
        loss = (weight - len(firsts)).square().sum()
        loss.backward()
        calls.append(float(loss.detach()))
        return loss

    for _ in range(4):
        place = len(calls)
        optimizer.step(closure)
        firsts.append(calls[place])
    assert detector.state_dict()["kept"]["series"]["numbers"].tolist() == firsts
    assert len(calls) > 4


def test_a_loop_without_a_closure_gives_the_loss_itself():
    detector, run = Slope(least=4, share=1.0, every=4), Run()
    detector.watch(run.optimizer)
    losses = []
    for _ in range(4):
        loss = run.closure()
        detector.loss(loss)
        run.optimizer.step()
        run.steps += 1
        losses.append(float(loss.detach()))
    assert detector.state_dict()["kept"]["series"]["numbers"].tolist() == losses


def test_optimizers_of_this_package_report_their_loss():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = HessianFree(model.parameters())
    detector = Slope(least=4, share=1.0, every=4)
    detector.watch(optimizer)
    losses = []
    for _ in range(4):
        optimizer.step(Objective(model, nn.MSELoss(), (torch.randn(8, 3), torch.randn(8, 1))))
        losses.append(optimizer.report.loss)
    assert detector.state_dict()["kept"]["series"]["numbers"].tolist() == losses


def test_bfloat16_and_sparse_gradients_are_understood(detector):
    embedding = nn.Embedding(5, 3, sparse=True)
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([*embedding.parameters(), weight], lr=0.1)
    detector.watch(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = embedding(torch.tensor([1, 2])).square().mean() + weight.float().square().mean()
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    assert detector.steps == 20


def test_nothing_is_read_from_the_device_between_tests(monkeypatch):
    """A number that is read of a tensor goes through `item`, `float` or `bool`, each of which waits for the device."""
    for make in (DETECTORS["sasa"], DETECTORS["slope"], DETECTORS["pflug"], DETECTORS["gradient_norm"]):
        detector, run = make(), Run()
        detector.watch(run.optimizer)
        run.go(10)

        def refuse(*_):
            raise AssertionError("read from the device")

        with monkeypatch.context() as patched:
            for name in ("item", "__float__", "__bool__", "__int__", "tolist"):
                patched.setattr(torch.Tensor, name, refuse)
            run.go(9)


def test_a_figure_is_drawn(detector, tmp_path):
    run = Run()
    detector.watch(run.optimizer)
    run.go(40)
    detector.figure(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_history_is_thinned():
    detector = Slope(least=4, share=0.01, every=4)
    parameters = [torch.ones(1)]
    detector.start(parameters)
    detector._test = lambda steps, now: (float(steps), False)
    for _ in range(4000):
        detector.update(parameters, loss=1.0)
    steps = [step for step, _ in detector.history]
    assert 100 < len(steps) <= 256
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1


def test_no_warning_comes_of_ordinary_runs(detector):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with detector.watch((run := Run()).optimizer):
            run.go(120)
    assert isinstance(detector.in_diffusion, bool)
