"""Reading a study's configuration: defaults, and errors that name the key."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latephase.problems import get
from latephase.problems.data import missing
from latephase.problems.problem import row_count
from latephase.study.config import ConfigError, check_fit, named_studies, parse_study, read_study, scaled

MINIMAL = {
    "name": "small",
    "problem": "digits",
    "seeds": [0],
    "checkpoints": [4],
    "training": {"epochs": 4, "save_every": 2},
    "strategies": [
        {"kind": "first_order", "name": "constant", "label": "SGD", "schedule": "constant"},
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


def test_what_a_resolved_study_says_of_its_kinds_is_what_they_are():
    table = tomllib.loads(parse_study(MINIMAL, "minimal").toml())
    assert table["kinds"].keys() == {"first_order", "hessian_free"}
    for kinds in ({"first_order": {"second_order": True}}, {"newton": {}}, 1):
        with pytest.raises(ConfigError, match=r"my\.toml: kinds: says what other kinds .* leave this table out"):
            parse_study(table | {"kinds": kinds}, "my.toml")


@pytest.mark.parametrize("name", named_studies())
def test_named_studies_are_read_and_fit_the_data_they_find(name):
    study = read_study(name)
    problem = get(study.problem, **study.problem_options)
    if problem.dataset and missing(problem.dataset, study.problem_options.get("rows")):
        return
    fitted = check_fit(study, problem, row_count(problem.load().train))
    parts = [part for strategy in fitted.strategies for part in strategy.singles]
    assert all(s.evaluation_batch_size is not None for s in parts if s.kind == "hessian_free")


def test_a_number_of_checkpoints_spaces_them_equally_and_names_have_defaults():
    cosine = {"kind": "first_order", "name": "cos", "label": "C", "schedule": "cosine"}
    table = MINIMAL | {"checkpoints": 3, "training": {"epochs": 10}, "strategies": [*MINIMAL["strategies"], cosine]}
    study = parse_study(table, "minimal")
    assert study.checkpoints == [3, 6, 10]
    assert (study.baseline, study.target) == ("constant", "cos")
    assert (study.budget.unit, study.budget.share) == ("seconds", 0.1)
    assert parse_study(MINIMAL, "minimal").target == "constant"


def test_a_scale_shrinks_epochs_seeds_and_checkpoints_and_is_kept():
    table = MINIMAL | {"training": {"epochs": 100, "evaluate_every": 10}, "checkpoints": 10, "seeds": list(range(10))}
    small = scaled(parse_study(table, "minimal"), 0.3)
    assert (small.training.epochs, small.training.evaluate_every, len(small.seeds), small.scale) == (30, 3, 3, 0.3)
    assert small.checkpoints == [10, 20, 30]
    tiny = scaled(small, 0.01)
    assert (tiny.training.epochs, len(tiny.seeds), tiny.checkpoints) == (1, 2, [1])
    assert parse_study(tomllib.loads(tiny.toml()), "again") == tiny
    for scale in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="scale must be above 0 and at most 1"):
            scaled(small, scale)


@pytest.mark.parametrize("kind", ["adamqlr", "sgdqlr"])
def test_quadratic_rates_take_the_options_of_their_optimizers(kind):
    strategy = {"kind": kind, "name": "q", "label": "Q", "batch_size": 8, "options": {"lr_clip": 0.1, "damping": 0.5}}
    assert parse_study(MINIMAL | {"strategies": [strategy]}, "minimal").strategies[0].options["lr_clip"] == 0.1
    strategy["options"] = {"lr_clap": 0.1}
    with pytest.raises(ConfigError, match=r"'lr_clap' is no option of \w+ \(did you mean 'lr_clip'\?\)"):
        parse_study(MINIMAL | {"strategies": [strategy]}, "minimal")


def test_hessian_free_takes_preconditioners_by_name():
    for method in ("kfac", {"kind": "nystrom", "rank": 5}):
        table = changed("strategies.1.options", {"solver": {"preconditioner": method}})
        study = parse_study(table, "my.toml")
        assert study.strategies[1].options == {"solver": {"preconditioner": method}}
        assert parse_study(tomllib.loads(study.toml()), "my.toml") == study


def test_a_chains_parts_end_in_order_and_fit_the_data():
    def chain(*ends, size=64):
        parts = [{"until": end, "strategy": MINIMAL["strategies"][1] | {"batch_size": size}} for end in ends]
        return MINIMAL | {"strategies": [{"kind": "chain", "name": "c", "label": "C", "parts": parts}]}

    fitted = check_fit(parse_study(chain(0.5, 1.0), "my.toml"), get("digits"), 1197)
    assert [part.strategy.evaluation_batch_size for part in fitted.strategies[0].parts] == [299, 299]
    for ends in ((0.5, 0.4), (0.5, 0.9), (0.5, 0.5, 1.0)):
        with pytest.raises(ConfigError, match=r"until must rise and end with 1\.0"):
            parse_study(chain(*ends), "my.toml")
    with pytest.raises(ConfigError, match=r"hf: batch_size 1000 .* exceed the 1197"):
        check_fit(parse_study(chain(0.5, 1.0, size=1000), "my.toml"), get("digits"), 1197)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("budgets", {}, r"unknown key budgets \(did you mean 'budget'\?\)"),
        ("hessian_free", 1, r"unknown key hessian_free"),
        ("budget.shares", 0.1, r"unknown key budget.shares \(did you mean 'share'\?\)"),
        ("budget.share", -0.1, r"budget.share: .*greater than 0"),
        ("budget.amount", 5.0, r"budget: give share, of the training, or amount, in units, not both"),
        ("budget", {"unit": "steps", "amount": 2.5}, r"budget: amount must be a whole number of steps, got 2.5"),
        ("budget", {"unit": "minutes"}, r"budget.unit: .*'seconds'"),
        ("budget", {"amount": -3.0}, r"budget.amount: .*greater than 0"),
        ("baseline", "hff", r"baseline: no strategy 'hff' \(did you mean 'hf'\?\)"),
        ("scale", 2.0, r"scale: .*less than or equal to 1"),
        ("evaluations", 0, r"evaluations: .*greater than or equal to 1"),
        ("strategies.1.evaluation_batch_size", -1, r"evaluation_batch_size: .*greater than or equal to 0"),
        ("strategies.1.curvature_batch_size", 65, r"curvature_batch_size 65 exceeds the batch of 64"),
        ("strategies.1.name", "constant", r"strategies must differ"),
        ("training.epoch", 4, r"unknown key training.epoch \(did you mean 'epochs'\?\)"),
        ("strategies.1.batchsize", 4, r"unknown key strategies.1.batchsize \(did you mean 'batch_size'\?\)"),
        ("strategies.1.options", {"dampin": 1.0}, r"strategies.1.options.*'dampin'.*did you mean 'damping'"),
        ("strategies.0.schedule", "cosin", r"strategies.0.schedule: .*'cosine'"),
        ("strategies.0.kind", "sgd", r"strategies.0.*'sgd'"),
        ("seeds", [], r"seeds: .*at least 1"),
        ("seeds", [1, 1], r"seeds must differ"),
        ("checkpoints", [5], r"checkpoints: epoch 5 is after the training's 4"),
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
