"""Reading a study's configuration: defaults, and errors that name the key."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latephase.problems import get
from latephase.study.config import ConfigError, check_fit, named_studies, parse_study, read_study

MINIMAL = {
    "name": "small",
    "problem": "digits",
    "seeds": [0],
    "checkpoints": [4],
    "training": {"epochs": 4, "save_every": 2},
    "strategies": [
        {"kind": "sgd", "name": "constant", "label": "SGD", "schedule": "constant"},
        {"kind": "hessian_free", "name": "hf", "label": "HF", "batch_size": 64, "options": {"damping": 0.5}},
    ],
}


def changed(path: str, value: object) -> dict:
    """MINIMAL with one key set; path as in "training.epochs" or "strategies.1.batch_size"."""
    table = tomllib.loads(parse_study(MINIMAL, "minimal").toml())
    *parents, last = path.split(".")
    place = table
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    place[last] = value
    return table


def test_the_training_setting_comes_from_the_problem_where_none_is_given():
    study = parse_study(MINIMAL, "minimal")
    setting = get("digits").training
    assert (study.training.lr, study.training.batch_size) == (setting.lr, setting.batch_size)
    assert study.training.epochs == 4


def test_the_resolved_study_reads_back_as_itself():
    study = parse_study(MINIMAL, "minimal")
    assert parse_study(tomllib.loads(study.toml()), "again") == study


@pytest.mark.parametrize("name", named_studies())
def test_named_studies_fit_their_data(name):
    study = read_study(name)
    problem = get(study.problem)
    fitted = check_fit(study, problem, len(problem.load().train[1]))
    assert all(s.evaluation_batch_size for s in fitted.strategies if s.kind == "hessian_free")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("budget_shares", 0.1, r"unknown key budget_shares \(did you mean 'budget_share'\?\)"),
        ("training.epoch", 4, r"unknown key training.epoch \(did you mean 'epochs'\?\)"),
        ("strategies.1.batchsize", 4, r"unknown key strategies.1.batchsize \(did you mean 'batch_size'\?\)"),
        ("strategies.1.options", {"dampin": 1.0}, r"strategies.1.options.*'dampin'.*did you mean 'damping'"),
        ("strategies.0.schedule", "cosin", r"strategies.0.schedule: .*'cosine'"),
        ("strategies.0.kind", "adam", r"strategies.0.*'adam'"),
        ("budget_share", -0.1, r"budget_share: .*greater than 0"),
        ("seeds", [], r"seeds: .*at least 1"),
        ("seeds", [1, 1], r"seeds must differ"),
        ("checkpoints", [3], r"epoch 3 is none of the saved ones, 2, 4"),
        ("training.save_every", 3, r"training: epochs \(4\) must be a multiple of save_every \(3\)"),
        ("jobs", "two", r"jobs: "),
        ("problem", "digit", r"problem: unknown problem 'digit'.*Did you mean 'digits'"),
    ],
)
def test_an_error_names_file_key_and_remedy(path, value, message):
    with pytest.raises(ConfigError, match=rf"my\.toml: .*{message}"):
        parse_study(changed(path, value), "my.toml")


def test_a_missing_key_is_named():
    table = {key: value for key, value in MINIMAL.items() if key != "seeds"}
    with pytest.raises(ConfigError, match="missing key seeds"):
        parse_study(table, "my.toml")


def test_an_unknown_study_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"no study 'digit' \(did you mean 'digits'\?\)"):
        read_study("digit")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file"):
        read_study(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("name = ", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML"):
        read_study(str(tmp_path / "bad.toml"))


def test_batches_that_do_not_fit_are_refused_before_anything_runs():
    study = parse_study(changed("strategies.1.batch_size", 1000), "minimal")
    with pytest.raises(ConfigError, match=r"hf: batch_size 1000 .*of 299 exceed the 1197 training rows"):
        check_fit(study, get("digits"), 1197)


@pytest.mark.parametrize(("rows", "expected"), [(1197, 299), (4096, 1024), (50_000, 1024)])
def test_the_evaluation_batch_is_1024_or_a_quarter_of_the_training_split(rows, expected):
    fitted = check_fit(parse_study(MINIMAL, "minimal"), get("digits"), rows)
    assert fitted.strategies[1].evaluation_batch_size == expected


def refusal(table):
    """The message with which a table is refused; None where it is read."""
    try:
        parse_study(table, "random")
    except ConfigError as error:
        return str(error)
    return None


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.one_of(st.integers(), st.text(), st.none(), st.booleans())))
def test_any_unknown_keys_are_refused_with_a_configuration_error(extra):
    message = refusal(MINIMAL | extra)
    assert (message is None) == (extra == {})
    assert message is None or message.startswith("random: ")
