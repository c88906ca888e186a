"""A small study from end to end: what is written, what is undone, and what is done again."""

import csv

import pytest
from small_studies import first_order, hessian_free, performed, rows_of, statuses_of, study_of, times_of

from latephase.records.files import read_journal, read_json
from latephase.study.config import ConfigError
from latephase.study.performing.conducting import conduct
from latephase.study.performing.progress import StudyProgress
from latephase.study.performing.runs import plan_runs

pytestmark = pytest.mark.xdist_group("conduct")  # what all tests of this file stand on is made once

STRATEGIES = [*(first_order(schedule) for schedule in ("constant", "cosine", "averaging")), hessian_free()]
SECONDS = {"budget": {"unit": "seconds", "share": 0.5}, "seeds": [0]}


class Listener(StudyProgress):
    """Progress that keeps what it was told."""

    def __init__(self):
        self.said = []

    def begin(self, what, total, done=0):
        self.said.append((what, total, done))

    def advance(self, done, detail=""):
        self.said.append((done, detail))


@pytest.fixture(scope="module")
def study():
    return study_of(*STRATEGIES, **SECONDS)


@pytest.fixture(scope="module")
def conducted(study, tmp_path_factory):
    directory, progress = tmp_path_factory.mktemp("conducted") / "out", Listener()
    page, broken = conduct(study, directory, progress)
    assert (page, broken) == (directory / "report.html", [])
    return directory, progress.said


def scores(directory):
    with (directory / "scores.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_run_has_one_finite_row_and_the_page_is_there(study, conducted):
    directory, _ = conducted
    rows = scores(directory)
    keys = [(int(row["checkpoint_epoch"]), row["strategy"], int(row["seed"])) for row in rows]
    assert sorted(keys) == sorted((k.checkpoint_epoch, k.strategy.name, k.seed) for k in plan_runs(study))
    assert {row["status"] for row in rows} == {"finished"}
    assert all(float(row["overshoot_seconds"]) >= 0 for row in rows)
    assert "data:image/png;base64," in (directory / "report.html").read_text(encoding="utf-8")


def test_all_strategies_are_evaluated_at_the_same_points_of_half_the_training(conducted):
    directory, _ = conducted
    rows = [[row["spent"] for row in rows if row["event"] == "evaluation"] for rows in rows_of(directory).values()]
    seconds = read_json(directory / "training" / "status.json")["seconds"]
    assert rows == [[0.5 * seconds * i / 4 for i in range(5)]] * 8


def test_a_budget_in_steps_or_gradients_is_a_share_of_the_trainings(tmp_path, monkeypatch):
    for unit in ("steps", "gradients"):
        study = study_of(first_order(), budget={"unit": unit, "share": 0.3}, seeds=[0], checkpoints=[1])
        performed(study, tmp_path / unit, monkeypatch)
        status = read_json(tmp_path / unit / "training" / "status.json")
        assert status[unit] == 16  # four epochs of four batches
        ((_, run),) = statuses_of(tmp_path / unit).items()
        assert run["spent"] == 5.0


def test_progress_is_told_of_the_training_and_of_every_run(study, conducted):
    _, said = conducted
    assert ("training, epochs", 4, 0) in said
    assert ("runs", 8, 0) in said
    ends = [line for line in said if len(line) == 2 and " finished" in str(line[1])]
    assert [done for done, _ in ends] == list(range(1, 9))
    ended = sorted(detail.partition(" finished")[0] for _, detail in ends)
    assert ended == sorted(key.run_id for key in plan_runs(study))


def test_running_again_redoes_nothing_and_a_lost_run_only(study, conducted, monkeypatch):
    directory, _ = conducted
    before = times_of(directory)
    lost = directory / "runs" / "checkpoint-0003_hf_seed-0"
    (lost / "status.json").unlink()
    performed(study, directory, monkeypatch)
    assert {name for name, time in times_of(directory).items() if time != before[name]} == {lost.name}
    assert len([row for row in read_journal(lost / "rows.jsonl") if row["event"] == "evaluation"]) == 5


def test_a_folder_with_another_study_is_refused(conducted, monkeypatch):
    directory, _ = conducted
    other = study_of(*STRATEGIES, **SECONDS | {"budget": {"unit": "seconds", "share": 0.25}})
    with pytest.raises(ConfigError, match=r"holds another study: budget is .*0\.5.* there and .*0\.25.* here"):
        performed(other, directory, monkeypatch)


def test_a_folder_with_other_things_is_refused_and_left_alone(study, tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").write_text("precious", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not empty and holds no study"):
        performed(study, tmp_path, monkeypatch)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
