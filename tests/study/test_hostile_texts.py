"""Texts of somebody else, in every place that a study has for one, reach terminal, page, figures and tables as text."""

import csv
import io
import json
import re
import tomllib
from html.parser import HTMLParser

import pytest
import tomli_w
from matplotlib.text import Text
from rich.console import Console
from small_studies import first_order, table
from test_tune_config import adamqlr, tuning_table
from test_tune_figures import outcome
from typer.testing import CliRunner

from latephase.cli import app
from latephase.records.drawing import freeze, house_style
from latephase.study.config import ConfigError, parse_study
from latephase.study.page.figures import build
from latephase.study.page.page import Picture, render_page
from latephase.study.performing.progress import StudyProgress
from latephase.study.results.load import load_results
from latephase.study.results.score import score_results, write_scores
from latephase.study.tune.config import Search, parse_tuning
from latephase.study.tune.figures import build as build_tuning
from latephase.study.tune.outcome import write_table

HOSTILE = (
    "_SGD [/foo] [bold red]x[/] <script>alert(1)</script> \"'><img src=x onerror=alert(2)> &amp; $x_{ 5 $ :smile: "
    "{{ 7 * 7 }} {% raw %} \x1b[2J\x1b]0;t\x07 \u202eturned\u2028 \u65e5\u672c \U0001f600 %s {0}"
)
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture
def hostile(write_study, break_run):
    """A study whose every text says the worst: labels, titles, options, a metric's name, errors, the machine."""
    root = write_study(metric="rmse")
    break_run(root)
    plan = tomllib.loads((root / "study.toml").read_text(encoding="utf-8"))
    for number, strategy in enumerate(plan["strategies"]):
        strategy |= {"label": f"{'=-@'[number]}{HOSTILE}", "options": {HOSTILE: HOSTILE, "list": [HOSTILE]}}
    plan |= {"description": HOSTILE, "name": HOSTILE, "problem": f"={HOSTILE}", "problem_options": {HOSTILE: HOSTILE}}
    (root / "study.toml").write_text(tomli_w.dumps(plan), encoding="utf-8")
    metric = HOSTILE.replace(" ", "_")
    problem = json.loads((root / "problem.json").read_text(encoding="utf-8"))
    problem |= {"title": HOSTILE, "description": HOSTILE, "name": HOSTILE}
    problem["metrics"][0]["name"] = metric
    (root / "problem.json").write_text(json.dumps(problem), encoding="utf-8")
    machine = dict.fromkeys(("device", "cpu", "platform", "git_commit"), f"{HOSTILE}\ud800")
    (root / "environment.json").write_text(json.dumps(machine), encoding="utf-8")
    for path in root.rglob("*.json*"):
        text = path.read_text(encoding="utf-8").replace('test_rmse"', f'test_{json.dumps(metric)[1:-1]}"')
        text = text.replace('train_rmse"', f'train_{json.dumps(metric)[1:-1]}"')
        path.write_text(text.replace('<script>alert(1)</script>"}', f'{json.dumps(HOSTILE)[1:-1]}\\ud800"}}'))
    return root


class Elements(HTMLParser):
    """What a browser would see of a page beside its letters."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))

    def handle_data(self, data):
        self.words.append(data)


def page_of(root):
    results = load_results(root)
    names = ["training", "relative", *(f"time-to-target-{epoch:04d}" for epoch in results.plan.checkpoints)]
    return render_page(results, score_results(results), {name: Picture("data:,", "data:,", 1, 1) for name in names})


def test_a_page_of_hostile_texts_has_no_element_and_no_attribute_of_theirs(hostile):
    text = page_of(hostile)
    seen = Elements(text)
    assert not STEERING.search(text)
    assert [tag for tag, _ in seen.found].count("script") == 1
    assert {
        attribute for _, attributes in seen.found for attribute in attributes if attribute.startswith("on")
    } == set()
    assert {attributes for tag, attributes in seen.found if tag == "img"} == {("alt", "height", "src", "width")}
    words = "".join(seen.words)
    assert words.count("<script>alert(1)</script>") >= 12
    assert "{{ 7 * 7 }}" in words
    text.encode("utf-8")


def test_figures_of_hostile_texts_show_their_letters(hostile):
    plan = (hostile / "study.toml").read_text(encoding="utf-8").replace("    10,\n    20,\n", "    20,\n")
    (hostile / "study.toml").write_text(plan, encoding="utf-8")
    results = load_results(hostile)
    assert results.plan.checkpoints == [20]
    with house_style():
        for _, figure in build(results):
            freeze(figure)
            figure.savefig(io.BytesIO(), format="png", dpi=20)
            texts = [text for text in figure.findobj(Text) if "SGD" in text.get_text()]
            assert not STEERING.search("".join(text.get_text() for text in texts))
            named = [line for axes in figure.axes[:1] for line in axes.get_lines() if "SGD" in str(line.get_label())]
            labels = [text for legend in figure.legends for text in legend.get_texts() if "SGD" in text.get_text()]
            assert len(labels) >= len(named)  # matplotlib leaves out what begins with an underscore


def test_the_terminal_shows_hostile_labels_and_errors_as_letters(hostile, monkeypatch):
    monkeypatch.setattr("latephase.study.page.write_report", lambda directory: directory / "report.html")
    said = CliRunner().invoke(app, ["report", str(hostile)], env={"COLUMNS": "2000"})
    assert said.exit_code == 0, said.output
    assert not STEERING.search(said.output)
    for part in ("[/foo] [bold red]x[/]", ":smile:", r"\x1b[2J", r"\u202eturned"):
        assert part in said.output


def test_progress_takes_any_name(monkeypatch):
    out = io.StringIO()
    for terminal in (True, False):
        with StudyProgress(Console(file=out, force_terminal=terminal, color_system=None)) as progress:
            progress.begin(HOSTILE, 2)
            progress.advance(1, HOSTILE)
            progress.advance(2, HOSTILE)
    assert "[/foo]" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    assert "\u202e" not in out.getvalue()


def test_spreadsheets_take_no_cell_for_a_formula(hostile, tmp_path):
    write_scores(score_results(load_results(hostile)), tmp_path / "scores.csv")
    failed = [outcome("sgd", 0, "failed", {"lr": 0.25}, None)]
    failed[0].__dict__["error"] = "=HYPERLINK(1)"
    write_table(failed, tmp_path / "trials.csv")
    for name in ("scores.csv", "trials.csv"):
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.DictReader(file) for cell in row.values()]
        assert any(cell.startswith(("'=", "'-", "'@")) for cell in cells)
        assert not any(cell.startswith(("=", "-", "@")) for cell in cells)


def test_a_tunings_figures_take_any_label_path_and_choice():
    own = adamqlr(**{f"options.{HOSTILE}": {"choices": [HOSTILE, "_b"]}, "options.damping": {"low": 0.1, "high": 1.0}})
    plain = first_order(name="sgd", optimizer="sgd", search={"lr": {"low": 0.1, "high": 1.0}})
    tuning = parse_tuning(tuning_table(plain | {"label": HOSTILE}), "small")
    other = parse_tuning(tuning_table(adamqlr(**{"options.damping": own["search"]["options.damping"]})), "small")
    searches = {path: Search.model_validate(table) for path, table in own["search"].items()}
    object.__setattr__(other, "searches", {"qlr": searches})
    object.__setattr__(other.study.strategies[0], "__dict__", other.study.strategies[0].__dict__ | {"label": HOSTILE})
    found = [
        outcome(
            "qlr",
            i,
            "finished",
            {f"options.{HOSTILE}": HOSTILE if i % 2 else "_b", "options.damping": 0.1 + i / 20},
            0.5 + i,
        )
        for i in range(12)
    ]
    with house_style():
        for tuned, trials in ((other, found), (tuning, [outcome("sgd", 0, "finished", {"lr": 0.2}, 0.1)])):
            for _, figure in build_tuning(tuned, trials):
                freeze(figure)
                figure.savefig(io.BytesIO(), format="png", dpi=20)


@pytest.mark.parametrize("arguments", [
    ("problems", "evil_texts:make"),
    ("check", "evil_texts:make"),
    ("study", "plan.toml", "--out", "out", "--dry-run"),
    ("study", f"{HOSTILE[:40]}\x1b[2J\u202e.toml", "--out", "out"),
    ("study", "tuning.toml", "--out", f"out {HOSTILE[:20]}\x1b[2J", "--jobs", "1"),
    ("tune", "tuning.toml", "--out", "out", "--storage", "sqlite:///absent/[/foo]\x1b[2J\u202e.db"),
    ("report", "[/foo]\x1b[2J\u202e"),
])  # fmt: skip
def test_what_commands_say_of_hostile_names_and_errors_is_letters(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_texts.py").write_text(f"def make():\n    raise ValueError({HOSTILE!r})\n", encoding="utf-8")
    (tmp_path / "plan.toml").write_text(tomli_w.dumps({"name": "x", HOSTILE: HOSTILE, "strategies": [HOSTILE]}))
    (tmp_path / "tuning.toml").write_text(tomli_w.dumps(tuning_table()), encoding="utf-8")
    found = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "2000"})
    assert isinstance(found.exception, SystemExit)
    assert found.exit_code in (1, 2)
    assert not STEERING.search(found.output)
    assert "Traceback" not in found.output


@pytest.mark.parametrize(("strategy", "said"), [
    ({"name": "mine", "label": "m"}, "strategy 'mine' has no kind; known kinds: first_order, hessian_free"),
    ({"name": "mine", "kinds": "lbfgs"}, r"strategy 'mine' has no kind \(did you mean it by 'kinds'\?\)"),
    ({"name": "mine", "kind": "hesian_free"}, "'mine' has the unknown kind 'hesian_free' .did you mean 'hessian_free'"),
    ({"name": "mine", "kind": 3}, "strategy 'mine' has the unknown kind 3; known kinds"),
    ({"label": "m"}, "a strategy without a name has no kind; known kinds"),
    ("mine", "must be a table, got 'mine'"),
    ({"name": "mine", "kind": "chain", "label": "m", "parts": [{"until": 1.0, "strategy": {"name": "part"}}]},
     r"parts.0.strategy: strategy 'part' has no kind; known kinds: (?!.*chain)"),
])  # fmt: skip
def test_a_strategy_without_its_kind_is_named_with_the_kinds_there_are(strategy, said):
    with pytest.raises(ConfigError, match=said):
        parse_study(table(strategy), "small")
