"""Suites read: a problem's keys in place of the suite's, and errors that name problem, key and remedy."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_studies import custom
from small_suites import FIVE, SEVEN, SMOOTH, suite_table

from latephase.study.config import ConfigError, named_studies, named_suites, parse_study, scaled, study_table
from latephase.study.suite import is_suite
from latephase.study.suite.config import parse_suite


def parsed(*problems, **changes):
    return parse_suite(suite_table(*problems, **changes), "pair.toml")


def test_each_member_is_the_study_that_a_file_of_its_own_would_be():
    change = {"evaluations": 3, "training": {"epochs": 5, "lr": 0.5}, "checkpoints": [0, 2], "seeds": [4]}
    suite = parsed("digits", SEVEN | change, score="test_loss", dtype="float64")
    plain = {key: value for key, value in suite_table().items() if key not in ("problems", "score")}
    digits = plain | {"name": "pair-digits", "problem": "digits", "dtype": "float64"}
    own = {"name": "pair-seven", "problem": SMOOTH, "problem_options": {"width": 7}, "dtype": "float64"}
    own |= change | {"budget": {"unit": "steps", "amount": 4}}
    assert [member.folder for member in suite.members] == ["digits", "seven"]
    assert [member.study for member in suite.members] == [
        parse_study(digits, "digits"), parse_study(plain | own, "seven")
    ]  # fmt: skip


def test_strategies_are_changed_by_their_names_and_tables_merged():
    change = {"name": "fast", "options": {"lr": 0.5}, "label": "Faster"}
    suite = parsed(FIVE, SEVEN | {"strategies": [change]})
    assert [s.label for s in suite.members[0].study.strategies] == ["slow", "fast"]
    slow, fast = suite.members[1].study.strategies
    assert (slow.label, fast.label, fast.options, fast.factory) == (
        "slow", "Faster", {"lr": 0.5}, "small_strategies:Plain"
    )  # fmt: skip


@pytest.mark.parametrize(("own", "unit", "share", "amount"), [
    ({"share": 0.5}, "steps", 0.5, None), ({"amount": 3}, "steps", None, 3), ({"unit": "seconds"}, "seconds", None, 8),
    ({"unit": "seconds", "share": 1.0}, "seconds", 1.0, None),
])  # fmt: skip
def test_a_problems_budget_takes_the_place_of_the_suites(own, unit, share, amount):
    budget = parsed(FIVE | {"budget": own}).members[0].study.budget
    assert (budget.unit, budget.share, budget.amount) == (unit, share, amount)


def test_the_suites_own_file_reads_back_as_itself():
    suite = parsed(FIVE, SEVEN)
    assert parse_suite(tomllib.loads(suite.toml()), "again") == suite


def test_options_of_the_command_change_every_study():
    suite = parsed(FIVE, SEVEN, seeds=list(range(10))).changed(lambda study: scaled(study, 0.3))
    assert [(len(member.study.seeds), member.study.scale) for member in suite.members] == [(3, 0.3)] * 2


@pytest.mark.parametrize(("problems", "changes", "message"), [
    (["digit"], {}, r"problems\.digit: problem: unknown problem 'digit'.*Did you mean 'digits'"),
    ([{"name": "digits", "buget": {}}], {}, r"problems\.digits: unknown key buget \(did you mean 'budget'\?\)"),
    ([{"name": "digits", "jobs": 2}], {}, r"problems\.digits\.jobs: it is the same for all problems"),
    ([{"name": "digits", "threads": 2}], {}, r"problems\.digits\.threads: it is the same for all problems"),
    ([{"name": "digits", "problem": "digits"}], {}, r"problems\.digits\.problem: it is the same"),
    ([{"folder": "digits"}], {}, r"problems\.0: give a problem's name, or a table with name"),
    ([3], {}, r"problems\.0: give a problem's name"),
    ([FIVE, FIVE], {}, r"problems: 'five' is there twice; give one of them a folder of its own"),
    (["digits", "digits"], {}, r"problems: 'digits' is there twice"),
    ([FIVE | {"folder": "report"}], {}, r"problems\.report: folder must be letters.*not report"),
    ([FIVE | {"folder": "../up"}], {}, r"folder must be letters"),
    ([FIVE | {"folder": 3}], {}, r"folder must be letters"),
    ([FIVE | {"kind": 3}], {}, r"problems\.five\.kind must be a text, got 3"),
    ([FIVE | {"strategies": [{"name": "fats"}]}], {}, r"five\.strategies: .*'fats' \(did you mean 'fast'\?\)"),
    ([FIVE | {"strategies": 3}], {}, r"problems\.five\.strategies: the suite has no strategy None"),
    ([FIVE | {"budget": {"amount": -1}}], {}, r"problems\.five: budget\.amount: .*greater than 0"),
    ([FIVE | {"problem_options": {"widht": 3}}], {}, r"problems\.five: problem: .*no option 'widht'"),
    ([FIVE], {"score": "test_relativ_l2_error"}, r"five: score .* \(did you mean 'test_relative_l2_error'\?\)"),
    ([FIVE], {"score": "train_relative_l2_error"}, r"score 'train_relative_l2_error' is not measured"),
    ([FIVE], {"score": 3}, r"score and description must be texts"),
    ([FIVE], {"name": "a/b"}, r"name must be a text of letters"),
    ([FIVE], {"problem": "digits"}, r"give problem, of a study, or problems, of a suite, not both"),
    ([FIVE], {"problems": []}, r"problems must be a list"),
    ([FIVE], {"problems": "digits"}, r"problems must be a list"),
    ([FIVE], {"sceds": [1]}, r"problems\.five: unknown key sceds \(did you mean 'seeds'\?\)"),
])  # fmt: skip
def test_an_error_names_problem_key_and_remedy(problems, changes, message):
    with pytest.raises(ConfigError, match=rf"^pair\.toml: {'.*' if message[0] != 'p' else ''}{message}"):
        parsed(*problems, **changes)


def test_nothing_of_a_users_own_is_called_where_it_is_not_to_be():
    absent = {"name": "no_such_module:problem", "folder": "absent", "score": "test_loss"}
    suite = parse_suite(suite_table(absent), "pair.toml", call=False)
    assert suite.members[0].study.problem == "no_such_module:problem"
    with pytest.raises(ConfigError, match=r"problems\.absent: problem: .*no_such_module"):
        parse_suite(suite_table(absent), "pair.toml")


def test_shipped_suites_are_read_and_are_no_studies():
    assert not {*named_suites()} & {*named_studies()}
    for name in named_suites():
        table, source = study_table(name)
        assert is_suite(table)
        assert parse_suite(table, source).name == name


def test_the_suite_of_the_documentation_is_one():
    text = (Path(__file__).parents[2] / "docs" / "study.md").read_text(encoding="utf-8")
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    suite = parse_suite(tomllib.loads(toml), "study.md")
    assert [member.folder for member in suite.members] == ["pinn_reaction", "pinn_wave", "wave-8"]
    assert [member.study.budget.amount for member in suite.members] == [20, 50, 20]
    assert suite.members[2].study.strategies[0].lr == 0.01


def test_an_unknown_name_lists_studies_and_suites(tmp_path, monkeypatch):
    (tmp_path / "one.toml").write_text("problem = 'digits'", encoding="utf-8")
    (tmp_path / "many.toml").write_text("problems = ['digits']", encoding="utf-8")
    monkeypatch.setattr("latephase.study.config.STUDIES", tmp_path)
    assert (named_studies(), named_suites()) == (["one"], ["many"])
    with pytest.raises(ConfigError, match=r"'manny' \(did you mean 'many'\?\); known studies: one; suites: many;"):
        study_table("manny")


def refusal(problem):
    """The message with which a problem's table is refused; None where it is read."""
    try:
        parsed(problem, strategies=[custom("Plain")])
    except ConfigError as error:
        return str(error)
    return None


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.one_of(st.integers(), st.text(), st.none(), st.booleans())))
def test_any_unknown_keys_of_a_problem_are_refused_with_a_configuration_error(extra):
    extra = {key: value for key, value in extra.items() if key not in FIVE}
    message = refusal(FIVE | extra)
    assert (message is None) == (extra == {})
    assert message is None or message.startswith("pair.toml: problems.")
