"""The stored studies: small, and enough to draw their pages from."""

import csv
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from latephase.study.suite.scores import write_scores

ROOT = Path(__file__).parent.parent
STUDIES = sorted(path.parent for path in (ROOT / "docs" / "studies").glob("*/scores.*"))
"""Studies, which keep scores.csv, and suites, which keep scores.json."""


@pytest.fixture(scope="module")
def pages():
    """The program that draws them."""
    specification = importlib.util.spec_from_file_location("study_pages", ROOT / "benchmarks" / "study_pages.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["study_pages"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["study_pages"]


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_a_study_keeps_its_scores_and_one_figure(folder):
    files = [path for path in folder.iterdir() if path.suffix not in (".csv", ".toml", ".json")]
    assert [path.suffix for path in files] == [".png"]
    assert all(path.stat().st_size < 400_000 for path in folder.iterdir())


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_scores_read_back_as_they_stand(folder, pages, tmp_path):
    if (folder / "scores.json").exists():
        suite = pages.read_suite_scores(folder / "scores.json")
        write_scores(suite, tmp_path / "scores.json")
        assert json.loads((tmp_path / "scores.json").read_text()) == json.loads((folder / "scores.json").read_text())
        return
    scores = pages.read_scores(folder / "scores.csv")
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(scores) == len(rows) > 0
    for score, row in zip(scores, rows, strict=True):
        for name, text in row.items():
            value = score.row()[name]
            expected = text if isinstance(value, str) else pages.number(text)
            assert value == expected or (math.isnan(value) and math.isnan(expected)), name


def test_a_page_has_a_verdict_every_strategy_its_means_and_its_figures(pages, tmp_path):
    folder = ROOT / "docs" / "studies" / "fashion-mnist"
    page = pages.draw(folder, tmp_path).read_text(encoding="utf-8")
    for text in ("SGD, cosine to 0", "92.57%", "0.2261", "From epoch 18", "reaches the highest test accuracy"):
        assert text in page
    assert page.count("data-chart=") == page.count("<figure>") - 1  # the stored figure is a picture alone
    assert len(page.encode()) < 1_000_000
    for picture in tmp_path.glob("*.png"):
        assert f"The figure {picture.stem} of this study." in page
        assert picture.stat().st_size > 10_000


def test_the_page_of_a_suite_is_drawn_from_its_scores(pages, tmp_path):
    value = {"seed": 0, "status": "finished", "seconds": 1.5}
    values = {"sgd": [value | {"value": 0.5}], "newton": [value | {"value": 0.01}]}
    case = {"folder": "wave", "problem": "pinn_wave", "title": "PINN: wave", "kind": "", "parameters": 81, "rows": 10}
    case |= {"epoch": 0, "measure": "test_loss", "higher_is_better": False, "unit": "steps", "budget": 4.0}
    strategies = [{"name": name, "kind": "custom", "label": name, "about": {}} for name in values]
    suite = {"name": "physics", "description": "", "baseline": "sgd", "strategies": strategies, "troubles": {}}
    suite |= {"cases": [case | {"dtype": "float64", "scale": 1.0, "values": values}], "machine": {}}
    (tmp_path / "scores.json").write_text(json.dumps(suite), encoding="utf-8")
    page = pages.draw(tmp_path, tmp_path / "page").read_text(encoding="utf-8")
    assert (
        'On 1 of 1 problem <b class="name">newton</b> has the lowest median test loss; on 1 it is at least ten times'
        in page
    )


def test_the_trials_of_a_tuning_are_read_with_what_they_tried(pages):
    pytest.importorskip("optuna")
    folder = ROOT / "docs" / "studies" / "qlr-uci-energy"
    tuning = pages.read_tuning("qlr-uci-energy")
    found = pages.read_trials(folder / "trials.csv", tuning)
    assert len(found) == 800
    first = found[0]
    assert (first.strategy, first.outcome, first.place, first.steps) == ("sgd-minimal", "finished", 0, 15735)
    assert first.values == {"lr": 0.0008398443443839605, "batch_size": 588}
