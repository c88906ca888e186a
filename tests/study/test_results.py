"""The result files of a study read back, damaged ones included."""

import subprocess
import sys
from pathlib import Path

import pytest

from latephase.study.results.load import load_results, run_id
from latephase.study.results.plan import read_plan
from latephase.study.results.score import Score, score, score_results, summarize


def row(scores, epoch, strategy, seed) -> Score:
    (found,) = [s for s in scores if (s.checkpoint_epoch, s.strategy, s.seed) == (epoch, strategy, seed)]
    return found


def break_file(root, name, text="{ not json\n{}\n"):
    path = root / "runs" / run_id(10, "cosine", 0) / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("rows.jsonl", '{"event": "start"}\n{"event"\n{}\n', "line 2"),
        ("rows.jsonl", '[1]\n{"event": "start"}\n', ""),
        ("rows.jsonl", '{"event": "start"}\n{"event": "evaluation", "step": 0}\n', "without what was spent"),
        (
            "rows.jsonl",
            '{"event": "evaluation", "spent": 1.0}\n{"event": "evaluation", "spent": 1.0}\n',
            "out of order",
        ),
        ("rows.jsonl", "", "has no evaluation"),
        ("clocks.jsonl", "}\n{}\n", "line 1"),
        ("status.json", "{", ""),
        ("status.json", "[]", "not a JSON object"),
        ("status.json", '{"status": "fine"}', "unknown status 'fine'"),
        ("run.json", "\x00\x00", ""),
    ],
)
def test_a_damaged_file_of_a_run_is_named_and_the_run_does_not_count(write_study, name, text, told):
    root = write_study()
    path = break_file(root, name, text)
    results = load_results(root)
    (run,) = [run for run in results.runs if run.status == "damaged"]
    assert run.run_id == run_id(10, "cosine", 0)
    assert run.damage[0].path == path
    assert told in run.damage[0].problem
    scores = score_results(results)
    assert row(scores, 10, "cosine", 0).best_train_loss == 1.0  # the checkpoint's
    assert summarize(scores, "best_train_loss")[10, "cosine"].n == 2


def test_a_run_killed_without_status_is_running_and_keeps_out_of_summaries(write_study):
    root = write_study()
    (root / "runs" / run_id(10, "cosine", 0) / "status.json").unlink()
    scores = score(root)
    assert row(scores, 10, "cosine", 0).status == "running"
    assert row(scores, 10, "cosine", 0).best_train_loss == 0.50
    assert row(scores, 10, "cosine", 0).time_to_target_train_loss is None
    assert summarize(scores, "best_train_loss")[10, "cosine"].n == 2


def test_only_the_last_attempt_counts_and_a_torn_line_is_skipped(write_study):
    root = write_study()
    path = root / "runs" / run_id(10, "cosine", 0) / "rows.jsonl"
    earlier = '{"event": "start"}\n{"event": "evaluation", "spent": 0.0, "train_loss": 0.001}\n'
    path.write_text(earlier + path.read_text() + '{"event": "evalu')
    assert row(score(root), 10, "cosine", 0).best_train_loss == 0.50


def test_steps_after_the_budget_are_left_out(write_study):
    run = next(run for run in load_results(write_study()).runs if run.steps)
    assert [step["spent"] for step in run.steps] == [0.5, 1.5]


def rename(root, old, new):
    for name in ("study.toml",):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))
    return root


def test_an_unfinished_training_is_an_error(write_study):
    root = write_study()
    (root / "training" / "status.json").write_text('{"status": "running", "seconds": 3.0}')
    with pytest.raises(ValueError, match="training is not finished"):
        score(root)


def test_a_checkpoint_without_evaluation_is_an_error(write_study):
    root = rename(rename(write_study(), "[10, 20]", "[10, 30]"), "epochs = 20", "epochs = 30")
    with pytest.raises(ValueError, match="checkpoint of epoch 30"):
        score(root)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("study.toml", "name = ", "study.toml is damaged"),
        ("study.toml", 'name = "x"', "no key"),
        ("problem.json", "{", "problem.json is damaged"),
        ("problem.json", "{}", "does not hold metrics"),
        ("environment.json", "[]", "environment.json is damaged: not a JSON object"),
        ("training/status.json", "", "status.json is damaged"),
        ("training/rows.jsonl", "{\n{}\n", "rows.jsonl is damaged"),
    ],
)
def test_damage_to_the_study_itself_is_named_with_what_to_do(write_study, name, text, told):
    root = write_study()
    (root / name).write_text(text)
    with pytest.raises(ValueError, match=told) as error:
        load_results(root)
    assert str(root / name) in str(error.value)


def test_a_folder_without_plan_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"study\.toml"):
        score(tmp_path)


def test_options_may_stand_beside_the_name_or_in_their_own_table(write_study):
    root = rename(write_study(), 'name = "cosine"\n', 'name = "cosine"\nschedule = "cosine"\n')
    assert load_results(root).plan.strategies[1].options == {"schedule": "cosine", "size": 64}


def test_a_chain_with_a_second_order_part_is_second_order(write_study):
    chain = 'name = "cosine"\nparts = [{ until = 1.0, strategy = { kind = "lbfgs" } }]\n'
    constant, cosine, hf = load_results(rename(write_study(), 'name = "cosine"\n', chain)).plan.strategies
    assert [constant.is_second_order, cosine.is_second_order, hf.is_second_order] == [False, True, True]


def test_what_a_file_leaves_out_is_what_a_study_would_have(write_study):
    """A file of an earlier version says less; the target is the first strategy under a cosine, whatever its name."""
    root = write_study()
    text = (root / "study.toml").read_text()
    for line in ('baseline = "constant"\n', 'target = "cosine"\n', "scale = 1.0\n", "share = 0.1\n"):
        assert line in text
        text = text.replace(line, "")
    (root / "study.toml").write_text(text)
    plan = load_results(root).plan
    assert (plan.baseline, plan.target, plan.scale, plan.curves) == ("constant", "constant", 1.0, "mean")
    assert (plan.budget.share, plan.fresh_weights, plan.evaluations) == (0.1, False, 2)
    rename(root, 'name = "hf-64"\n', 'name = "hf-64"\nschedule = "cosine"\n')
    assert load_results(root).plan.target == "hf-64"


NEWTON = '\n[kinds.newton]\ntitle = "Newton\\u2019s"\nsecond_order = true\nhas_rate = false\n'


def test_a_study_says_what_its_kinds_are(write_study):
    root = rename(write_study(), 'kind = "hessian_free"', 'kind = "newton"')
    unknown = load_results(root).plan.strategies[2]
    assert (unknown.title, unknown.is_second_order, unknown.has_rate) == ("newton", False, True)
    (root / "study.toml").write_text((root / "study.toml").read_text() + NEWTON)
    known = load_results(root).plan.strategies[2]
    assert (known.title, known.is_second_order, known.has_rate) == ("Newton’s", True, False)


@pytest.mark.parametrize(
    ("right", "wrong"), [("true", '"yes"'), ('"Newton', '["Newton"] #'), ("[kinds.newton]", "[kinds]\nnewton=1\n[x]")]
)
def test_what_no_study_wrote_of_a_kind_is_damage(write_study, right, wrong):
    root = rename(write_study(), 'kind = "hessian_free"', 'kind = "newton"')
    (root / "study.toml").write_text((root / "study.toml").read_text() + NEWTON.replace(right, wrong))
    with pytest.raises(ValueError, match=r"study\.toml is damaged"):
        load_results(root)


def test_the_budget_of_a_study_without_runs_is_the_planned_one(write_study):
    every = tuple((e, s, seed) for e in (10, 20) for s in ("constant", "cosine", "hf-64") for seed in range(3))
    root = write_study(skip=every)
    assert load_results(root).budget == 2.0  # a tenth of twenty seconds
    rename(root, "share = 0.1", "amount = 7.5")
    assert load_results(root).budget == 7.5


@pytest.mark.parametrize(
    "module",
    [
        "results",
        "results.load",
        "results.plan",
        "results.measures",
        "results.reached",
        "results.score",
        "results.statistics",
        "results.comparison",
        "results.profiles",
        "results.findings",
        "page",
        "page.tables",
        "page.style",
        "page.figures",
        "page.page",
    ],
)
def test_reading_modules_import_neither_torch_nor_pyplot(module):
    code = f"import sys, latephase.study.{module}; sys.exit(bool({{'torch', 'matplotlib.pyplot'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "docs" / "studies").glob("*/study.toml")), ids=str)
def test_plans_of_earlier_versions_are_read(path):
    plan = read_plan(path)
    assert plan.problem
    assert all(strategy.title for strategy in plan.strategies)
