"""What a detector says to input that it cannot take: missing or bad losses, wrong states, settings out of range."""

import copy
import warnings

import pytest
import torch
from detector_table import Run, every_detector, known
from torch import nn

from latephase.optim.late_phase import Distance, Pflug, Slope

detector = every_detector


@pytest.mark.filterwarnings("default")
def test_a_detector_without_what_it_needs_says_so():
    parameters = [nn.Parameter(torch.ones(2))]
    for detector, needed in ((Slope(), "loss"), (Pflug(), "gradients")):
        detector.start(parameters)
        for _ in range(99):
            detector.update(parameters)
        with pytest.warns(UserWarning, match=f"needs the {needed}"):
            detector.update(parameters)


@pytest.mark.filterwarnings("default")
def test_a_loss_that_is_not_a_number_is_ignored_and_said_once():
    parameters = [torch.ones(2)]
    detector = Slope(least=4, share=1.0, every=10)
    detector.start(parameters)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for n in range(40):
            detector.update(parameters, loss=float("nan") if n == 3 else float(n % 3))
    assert ["1 of 10 numbers were not finite" in str(each.message) for each in said] == [True]
    assert detector.ignored == 1
    assert detector.statistic is not None


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: state | {"detector": "other"}, "that of 'other'"),
    (lambda state: state | {"version": 99}, "version 99"),
    (lambda state: state | {"settings": {"x": 1}}, "was made with"),
    (lambda state: {k: v for k, v in state.items() if k != "history"}, "'history'"),
    (lambda state: state | {"history": {}}, "damaged"),
    (lambda state: "nothing", "must be a dict"),
])  # fmt: skip
def test_a_wrong_state_is_refused_and_nothing_loaded(detector, change, message):
    run = Run()
    with detector.watch(run.optimizer):
        run.go(20)
    before = known(detector)
    with pytest.raises(ValueError, match=message):
        detector.load_state_dict(change(copy.deepcopy(detector.state_dict())))
    assert known(detector) == before


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda d: d.update(torch.ones(2)), TypeError, "single tensor"),
    (lambda d: d.update([]), ValueError, "empty"),
    (lambda d: d.update([3]), TypeError, "int"),
    (lambda d: d.update([torch.ones(2)], gradients=[]), ValueError, "gradients must be one"),
    (lambda d: d.update([torch.ones(2)], gradients=[torch.ones(3)]), ValueError, r"\[2\], got shape \[3\]"),
    (lambda d: d.update([torch.ones(2)], lr=[1.0, 2.0]), ValueError, "lr must be one"),
    (lambda d: d.update([torch.ones(2)], lr=-1.0), ValueError, "finite number >= 0"),
    (lambda d: d.update([torch.ones(2)], loss="1"), ValueError, "loss must be"),
    (lambda d: d.update([torch.ones(2)], loss=torch.ones(2)), ValueError, "loss must be"),
])  # fmt: skip
def test_bad_input_is_refused_by_name(detector, call, error, message):
    with pytest.raises(error, match=message):
        call(detector)


@pytest.mark.parametrize("setting", [
    {"threshold": 0}, {"threshold": float("nan")}, {"q": 1}, {"first": -1}, {"first": 1.5}, {"q": "2"},
])  # fmt: skip
def test_bad_settings_of_distance_are_refused(setting):
    with pytest.raises(ValueError, match=f"Distance.{next(iter(setting))}"):
        Distance(**setting)


@pytest.mark.parametrize("setting", [
    {"significance": 0}, {"share": 1.5}, {"least": 3}, {"every": 0}, {"every": 1.0}, {"every": True},
])  # fmt: skip
def test_bad_settings_of_slope_are_refused(setting):
    with pytest.raises(ValueError, match=f"Slope.{next(iter(setting))}"):
        Slope(**setting)
