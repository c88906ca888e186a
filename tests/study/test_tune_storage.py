"""The trials in their storage: every place once, whoever comes, goes, or dies; the same settings every time."""

import math

import optuna
import pytest
from test_tune_config import adamqlr, tuning_table

from latephase.study.config import ConfigError
from latephase.study.tune import storage as storage_module
from latephase.study.tune.config import parse_tuning
from latephase.study.tune.outcome import best_of, outcomes
from latephase.study.tune.storage import Trials

SEARCHED = {"options.damping": {"low": 1e-8, "high": 1.0, "log": True}, "batch_size": {"choices": [12, 24, 48]}}


def tuning_of(count=4, tune=None, **changes):
    return parse_tuning(tuning_table(adamqlr(**SEARCHED), tune={"trials": count} | (tune or {}), **changes), "small")


@pytest.fixture
def worker(tmp_path):
    """Workers on one storage; `elsewhere` have a folder of their own, as on other machines."""
    begun = []

    def begin(tuning=None, elsewhere=""):
        begun.append(Trials(tuning or tuning_of(), tmp_path / elsewhere, f"sqlite:///{tmp_path / 'tune.db'}"))
        return begun[-1]

    yield begin
    for trials in begun:
        trials.close()


def finish(trials, claimed, value=1.0):
    return trials.conclude(claimed, {"outcome": "finished", "value": value, "at": 8.0})


def loss_of(claimed):
    """A loss with its best at damping 1e-3 and batches of 24."""
    off = {12: 0.3, 24: 0.0, 48: 0.2}[claimed.values["batch_size"]]
    return off + abs(math.log10(claimed.values["options.damping"]) + 3)


def searched(trials):
    """All settings of a search that finishes every trial, in the order of their places."""
    while (claimed := trials.claim()) is not None:
        finish(trials, claimed, loss_of(claimed))
    return [outcome.values for outcome in outcomes(trials)]


def test_two_workers_share_the_places(worker):
    first, second = worker(), worker()
    claimed = [first.claim(), second.claim(), second.claim(), first.claim()]
    assert [c.place for c in claimed] == [0, 1, 2, 3]
    assert first.claim() is None
    assert second.claim() is None
    for trials, c in zip((first, second, second, first), claimed, strict=True):
        assert finish(trials, c, float(c.place))
    assert [(o.place, o.value) for o in outcomes(second)] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert outcomes(first) == outcomes(second)


def test_of_two_that_take_one_place_at_once_the_first_holds_it(worker, monkeypatch):
    first, second = worker(), worker()
    looked = first._free("qlr")  # before the other takes it
    held = second.claim()
    answers = [looked]
    free = first._free
    monkeypatch.setattr(first, "_free", lambda name: answers.pop() if answers else free(name))
    claimed = first.claim()
    assert (held.place, claimed.place) == (0, 1)
    assert [t.user_attrs.get("outcome") for t in first.studies["qlr"].get_trials()] == [None, "surplus", None]
    assert sorted(first.held("qlr")) == [0, 1]


def test_trials_of_a_worker_that_is_gone_are_replaced_by_the_same_settings(worker):
    gone, other = worker(), worker()
    kept, lost = gone.claim(), gone.claim()
    assert finish(gone, kept, 0.5)
    assert other.find_lost() == 0
    gone.close()
    assert other.find_lost() == 1
    again = other.claim()
    assert (again.place, again.values) == (1, lost.values)
    assert finish(other, again)
    assert [o.number for o in outcomes(other)] == [0, 2]
    assert len(searched(other)) == 4


def test_what_a_worker_says_after_it_was_taken_for_dead_is_not_heard(worker):
    slow, other = worker(), worker()
    claimed = slow.claim()
    slow._alive.release()  # as if its process had ended
    other.find_lost()
    assert not finish(slow, claimed, -1.0)
    slow.beat(claimed)
    assert len(searched(other)) == 4
    assert best_of(outcomes(other), "qlr", False)[0].value > 0


def test_a_worker_elsewhere_is_dead_after_a_minute_without_a_sign(worker, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(storage_module.time, "monotonic", lambda: now[0])
    far, here = worker(elsewhere="far"), worker()
    claimed = far.claim()
    assert here.find_lost() == 0
    now[0] = 50.0
    far.beat(claimed)
    assert here.find_lost() == 0
    now[0] = 105.0  # 55 seconds after the sign was seen
    assert here.find_lost() == 0
    now[0] = 111.0
    assert here.find_lost() == 1


def test_a_trial_that_was_given_up_is_free_at_once(worker):
    trials = worker()
    claimed = trials.claim()
    trials.give_up(claimed)
    assert trials.held("qlr") == {}
    assert trials.claim().values == claimed.values


# TPE looks at what was found before from the eleventh trial on.
@pytest.mark.parametrize(("sampler", "count"), [("random", 4), pytest.param("tpe", 12, marks=pytest.mark.slow)])
def test_the_same_seed_draws_the_same_settings_in_one_go_or_two(sampler, count, tmp_path):
    tuning, found = tuning_of(count, {"sampler": sampler}), []
    for name, stops in (("once", ()), ("twice", (count - 1,))):
        for stop in (*stops, count):  # each a new worker, as after an interruption
            trials = Trials(tuning, tmp_path, f"sqlite:///{tmp_path / name}.db")
            while len(trials.held("qlr")) < stop:
                claimed = trials.claim()
                finish(trials, claimed, loss_of(claimed))
            trials.close()
        found.append([outcome.values for outcome in outcomes(trials)])
    assert found[0] == found[1]
    assert len({values["options.damping"] for values in found[0]}) == count


def test_another_seed_draws_other_settings(tmp_path):
    drawn = []
    for seed in (0, 1):
        trials = Trials(tuning_of(tune={"seed": seed}), tmp_path, "sqlite://")
        drawn.append(trials.claim().values)
        trials.close()
    assert drawn[0] != drawn[1]


def test_strategies_take_turns_and_draw_different_numbers(tmp_path):
    two = [adamqlr(**SEARCHED) | {"name": name} for name in ("a", "b")]
    trials = Trials(parse_tuning(tuning_table(*two), "small"), tmp_path, "sqlite://")
    claimed = [trials.claim() for _ in range(4)]
    assert [(c.strategy, c.place) for c in claimed] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert claimed[0].values != claimed[1].values
    trials.close()


@pytest.mark.slow
def test_tpe_finds_the_better_settings_sooner(tmp_path):
    medians = {}
    for sampler in ("random", "tpe"):
        trials = Trials(tuning_of(40, {"sampler": sampler}), tmp_path, "sqlite://")
        searched(trials)
        medians[sampler] = sorted(o.value for o in outcomes(trials)[20:])[10]
        trials.close()
    # Damping is uniform over 8 decades, 3 of them above the best: half of a random search is 2 or more decades away.
    assert medians["random"] > 1.5
    assert medians["tpe"] < 0.8 * medians["random"]


def test_at_a_rung_the_best_one_in_factor_goes_on(worker):
    trials = worker(tuning_of(9))
    values = [5.0, 6.0, 4.0, 4.5, 1.0, 3.0, 2.0, 0.5, 9.0]
    seen, expected = [], []
    for value in values:
        seen.append(value)
        expected.append(sorted(seen).index(value) < max(1, len(seen) // 2))
    assert [trials.goes_on(trials.claim(), 0, value) for value in values] == expected
    assert expected == [True, False, True, True, True, True, True, True, False]


def test_a_trial_that_was_lost_at_a_rung_does_not_count_there_beside_the_one_that_replaces_it(worker):
    trials = worker()
    answers = []
    for value, lost in ((1.0, False), (2.0, True), (2.0, False), (1.5, False)):
        claimed = trials.claim()
        answers.append(trials.goes_on(claimed, 0, value))
        if lost:
            trials.give_up(claimed)
    assert answers == [True, False, False, False]  # the best of 1.0, 2.0 and 1.5, not the best two of four


def test_rungs_are_compared_each_for_itself(worker):
    trials = worker()
    slow, fast = trials.claim(), trials.claim()
    assert trials.goes_on(slow, 0, 3.0)
    assert trials.goes_on(slow, 1, 2.5)
    assert trials.goes_on(fast, 0, 2.9)  # better than 3.0 at the same rung, though not than 2.5 at the next one
    assert not trials.goes_on(fast, 1, 2.6)


def test_more_is_better_where_the_metric_says_so(worker):
    trials = worker(tuning_of(tune={"metric": "valid_accuracy"}))
    assert trials.goes_on(trials.claim(), 0, 0.5)
    assert not trials.goes_on(trials.claim(), 0, 0.4)
    assert trials.goes_on(trials.claim(), 0, 0.6)
    assert trials.studies["qlr"].direction == optuna.study.StudyDirection.MAXIMIZE


def test_a_diverged_and_a_failed_trial_count(worker):
    trials = worker()
    trials.conclude(trials.claim(), {"outcome": "diverged", "error": "valid_loss is not finite after 2 steps"})
    trials.conclude(trials.claim(), {"outcome": "failed", "error": "killed by SIGKILL"})
    searched(trials)
    assert [o.outcome for o in outcomes(trials)] == ["diverged", "failed", "finished", "finished"]
    assert [o.share for o in outcomes(trials)] == [0.0, 0.0, 1.0, 1.0]
    assert outcomes(trials)[1].error == "killed by SIGKILL"


def test_more_trials_may_be_asked_for_later_and_fewer_count_the_first_ones(worker):
    few = worker(tuning_of(3))
    first = searched(few)
    more = worker(tuning_of(5))
    assert searched(more)[:3] == first
    assert len(outcomes(more)) == 5
    assert [o.values for o in outcomes(few)] == first


@pytest.mark.parametrize(("changes", "key"), [
    ({"tune": {"seed": 7}}, "seed 0, this is 7"),
    ({"tune": {"budget": {"unit": "steps", "amount": 16}}}, "budget"),
    ({"training": {"epochs": 2}}, "training"),
])  # fmt: skip
def test_another_tuning_of_the_name_is_refused(worker, changes, key):
    worker()
    with pytest.raises(ConfigError, match=f"holds trials of small/qlr with {key}"):
        worker(tuning_of(**changes))


def test_a_storage_that_cannot_be_reached_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(storage_module.time, "sleep", lambda seconds: None)
    with pytest.raises(ConfigError, match="cannot open the storage nosuch://here"):
        Trials(tuning_of(), tmp_path, "nosuch://here")
