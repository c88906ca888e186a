"""The file of a tuning: what is read from it, and what is refused with which words."""

import copy
import functools

import pytest
from small_studies import custom, first_order
from typer.testing import CliRunner

from latephase.cli import app
from latephase.study.config import ConfigError, named_studies, parse_study, read_study
from latephase.study.tune.conduct import resolve_tuning
from latephase.study.tune.config import Search, named_tunings, parse_tuning, read_tuning
from latephase.study.tune.paths import with_value

LR = {"lr": {"low": 1e-4, "high": 1.0, "log": True}}


def tuning_table(*strategies, tune=None, **changes):
    """The table of a tuning: eight steps, rungs after two and four of them."""
    adam = first_order(name="adam", optimizer="adam", search=LR)
    settings = {"trials": 4, "budget": {"unit": "steps", "amount": 8}, "halving": {"factor": 2, "rungs": 2}}
    return {
        "name": "small",
        "problem": "small_problems:noisy",
        "seeds": [0, 1],
        "tune": settings | (tune or {}),
        "strategies": copy.deepcopy(list(strategies)) or [adam],
    } | changes


def adamqlr(**search):
    factors = {"damping": {"factors": [0.9, 1.1]}}
    return {"kind": "adamqlr", "name": "qlr", "label": "QLR", "options": factors, "search": search}


def test_a_tuning_says_what_is_searched_for_and_where_trials_are_compared():
    fixed = first_order(name="fixed", search={})
    tuning = parse_tuning(tuning_table(first_order(name="sgd", optimizer="sgd", search=LR), fixed), "small")
    assert tuning.tuned == ["sgd"]
    assert tuning.points == [2.0, 4.0, 8.0]
    assert not tuning.higher_is_better
    assert tuning.strategy("sgd", {"lr": 0.5}).lr == 0.5
    assert "search" not in tuning.table["strategies"][0]
    assert tuning.given["strategies"][0]["search"] == LR


def test_the_default_rungs_are_fractions_of_the_budget():
    changes = {"trials": 4, "budget": {"amount": 64.0}}
    table = tuning_table() | {"tune": changes}
    tuning = parse_tuning(table, "small")
    assert tuning.points == [1.0, 4.0, 16.0, 64.0]
    assert tuning.study.budget.unit == "seconds"


def test_the_budget_may_be_the_studys():
    table = tuning_table(budget={"unit": "steps", "amount": 16})
    del table["tune"]["budget"]
    assert parse_tuning(table, "small").budget == 16


def test_the_best_settings_start_where_trials_do_unless_told_otherwise():
    tuning = parse_tuning(tuning_table(), "small")
    assert (tuning.study.checkpoints, tuning.study.training.epochs) == ([0], 1)
    late = parse_tuning(tuning_table(checkpoints=[1, 3]), "small")
    assert (late.study.checkpoints, late.study.training.epochs) == ([1, 3], 4)
    assert (tuning.study.fresh_weights, late.study.fresh_weights) == (True, False)
    assert not parse_tuning(tuning_table(fresh_weights=False), "small").study.fresh_weights


def test_what_is_changed_is_in_the_best_settings_too():
    tuning = parse_tuning(tuning_table(device="cuda"), "small").changed(jobs=1, trials=3, device="cpu")
    assert (tuning.study.device, tuning.table["device"], tuning.given["device"]) == ("cpu", "cpu", "cpu")
    assert (tuning.tune.trials, tuning.study.jobs) == (3, 1)


def test_a_study_is_not_tuned_and_a_tuning_no_study():
    with pytest.raises(ConfigError, match=r"small has a table \[tune\]: latephase tune small"):
        parse_study(tuning_table(), "small")


def test_accuracy_is_to_rise():
    assert parse_tuning(tuning_table(tune={"metric": "valid_accuracy"}), "small").higher_is_better


def test_paths_lead_into_options_and_lists():
    table = adamqlr()
    changed = with_value(with_value(table, "options.damping.initial", 0.5), "options.damping.factors.1", 3.0)
    assert changed["options"] == {"damping": {"factors": [0.9, 3.0], "initial": 0.5}}
    assert table["options"] == {"damping": {"factors": [0.9, 1.1]}}


def test_one_minus_gives_the_complement():
    search = Search(low=0.25, high=0.5, one_minus=True)
    assert search.ends() == [0.75, 0.5]
    assert not search.is_whole
    assert Search(low=1, high=5).is_whole
    assert not Search(low=1, high=5.0).is_whole


REFUSED = {
    "no table": (lambda t: t.pop("tune"), r"missing table \[tune\]"),
    "unknown key of tune": (lambda t: t["tune"].update(trails=3), r"unknown key tune.trails \(did you mean 'trials'"),
    "unknown sampler": (lambda t: t["tune"].update(sampler="grid"), r"tune.sampler: .*'random' or 'tpe'"),
    "no trials": (lambda t: t["tune"].update(trials=0), "tune.trials: .*greater than or equal to 1"),
    "share": (lambda t: t["tune"].update(budget={"share": 0.1}), "tune.budget: give amount"),
    "too many rungs": (
        lambda t: t["tune"].update(halving={"factor": 2, "rungs": 4}),
        r"first rung is at 0.5 steps of 8",
    ),
    "test split": (
        lambda t: t["tune"].update(metric="test_loss"),
        "'test_loss' is not measured on the validation split",
    ),
    "train split": (lambda t: t["tune"].update(metric="train_loss"), "'train_loss' is not measured on the validation"),
    "test metric": (
        lambda t: t.update(problem="pinn_heat1d") or t["tune"].update(metric="valid_relative_l2_error"),
        "'valid_relative_l2_error' is not measured on the validation split.*known: valid_loss$",
    ),
    "no search": (lambda t: t["strategies"][0].pop("search"), r"missing table strategies.adam.search: .*an empty one"),
    "nothing searched": (lambda t: t["strategies"][0].update(search={}), "no strategy searches for anything"),
    "search no table": (lambda t: t["strategies"][0].update(search=3), "strategies.adam.search must be a table, got 3"),
    "wrong study": (lambda t: t.pop("seeds"), "small: missing key seeds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named(case):
    spoil, message = REFUSED[case]
    table = tuning_table()
    spoil(table)
    with pytest.raises(ConfigError, match=message):
        parse_tuning(table, "small")


SEARCHES = {
    "unknown path": (
        "lrr",
        {"low": 0.1, "high": 1.0},
        r"search.lrr: with 0.1: unknown key lrr \(did you mean 'lr'\?\)",
    ),
    "unknown option": ("options.dampin", {"low": 0.1, "high": 1.0}, r"'dampin' is no option of AdamQLR \(did you mean"),
    "refused value": ("options.damping", {"low": -1.0, "high": 1.0}, "search.options.damping: with -1.0: .*damping"),
    "refused choice": ("batch_size", {"choices": [24, 0]}, "search.batch_size: with 0: batch_size: .*greater than"),
    "no list": ("options.betas.0", {"low": 0.1, "high": 0.9}, "options.betas.0 leads nowhere at '0'"),
    "name": ("name", {"choices": ["a", "b"]}, "name says which strategy it is"),
    "low above high": ("options.damping", {"low": 1.0, "high": 0.1}, "low must be below high, got low 1 and high 0.1"),
    "log of zero": ("options.damping", {"low": 0.0, "high": 1.0, "log": True}, "low must be above 0 where log is true"),
    "log with step": ("options.damping", {"low": 0.1, "high": 1.0, "log": True, "step": 0.1}, "step goes without log"),
    "step": ("options.damping", {"low": 0.0, "high": 1.0, "step": 0.3}, "must divide high - low"),
    "only low": ("options.damping", {"low": 0.1}, "give low and high, or choices"),
    "both": ("options.damping", {"low": 0.1, "high": 1.0, "choices": [0.5]}, "not both"),
    "twice": ("batch_size", {"choices": [24, 24]}, "choices must differ from each other"),
    "unknown key": ("options.damping", {"lo": 0.1, "high": 1.0}, r"search.options.damping.lo \(did you mean 'low'"),
}


@pytest.mark.parametrize("case", SEARCHES)
def test_a_search_that_leads_nowhere_is_refused(case):
    path, search, message = SEARCHES[case]
    with pytest.raises(ConfigError, match=message):
        parse_tuning(tuning_table(adamqlr(**{path: search})), "small")


def test_a_step_that_divides_is_taken():
    tuning = parse_tuning(tuning_table(adamqlr(**{"options.damping": {"low": 0.0, "high": 0.9, "step": 0.3}})), "small")
    assert tuning.searches["qlr"]["options.damping"].step == 0.3


def test_a_batch_that_does_not_fit_the_data_is_refused_before_the_first_trial():
    tuning = parse_tuning(tuning_table(adamqlr(batch_size={"choices": [24, 97]})), "small")
    with pytest.raises(ConfigError, match="batch_size 97 exceeds the 96 training rows"):
        resolve_tuning(tuning)


def test_a_value_may_need_another_that_is_searched_for():
    steps = {"kind": "hessian_free", "name": "hf", "label": "HF"}
    sizes = {"evaluation_batch_size": {"choices": [8, 16]}, "batch_size": {"choices": [24, 48]}}
    tuning = parse_tuning(tuning_table(steps | {"search": sizes}), "small")
    assert tuning.tuned == ["hf"]
    resolve_tuning(tuning)


def test_options_of_a_users_own_strategy_are_searched():
    own = custom("Plain") | {"search": {"options.lr": {"low": 0.1, "high": 0.5}}}
    tuning = parse_tuning(tuning_table(own), "small")
    assert tuning.strategy("own", {"options.lr": 0.2}).options == {"lr": 0.2}


@pytest.mark.parametrize("name", named_tunings())
def test_a_named_tuning_reads_and_says_what_it_would_do(name, tmp_path):
    tuning = read_tuning(name)
    result = CliRunner().invoke(
        app, ["tune", name, "--out", str(tmp_path / "out"), "--dry-run", "--trials", "7", "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert f"{7 * len(tuning.tuned)} trials, {tuning.study.jobs} at a time" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted({*named_tunings()} & {*named_studies()} - {"digits", "qlr-cifar10"}))
def test_a_named_study_has_settings_that_its_tuning_looks_for(name):
    """Of `qlr-cifar10` the study is not tuned, and the study `digits` has nothing to do with the tuning."""
    study, tuning = read_study(name), read_tuning(name)
    assert [s.name for s in study.strategies] == [s.name for s in tuning.study.strategies]
    assert study.budget == tuning.study.budget
    for strategy in study.strategies:
        values = {}
        for path, search in tuning.searches[strategy.name].items():
            value = functools.reduce(_inside, path.split("."), strategy.model_dump())
            low, high = sorted(search.ends()[:: len(search.ends()) - 1])
            assert value in search.choices if search.choices else low <= value <= high
            values[path] = value
        assert tuning.strategy(strategy.name, values) == strategy


def _inside(table, key):
    return table[int(key)] if isinstance(table, list) else table[key]


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"no tuning 'digitz' .did you mean 'digits'"):
        read_tuning("digitz")


def test_a_wrong_file_ends_the_command_with_its_error(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text('name = "wrong"\n', encoding="utf-8")
    result = CliRunner().invoke(app, ["tune", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "missing table [tune]" in result.output
