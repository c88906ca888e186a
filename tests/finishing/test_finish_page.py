"""The page of a finish: what it says and shows, and how it looks at the width of a desktop and of a phone."""

import dataclasses
import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_tasks import descent, quick

import latephase
from latephase import FinishReport
from latephase.finishing.figure import course
from latephase.finishing.page import page
from latephase.records import house_style


def browser():
    where = Path(__file__).parent.parent / "study" / "headless_browser.py"
    spec = importlib.util.spec_from_file_location("headless_browser", where)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    contestants = [descent(name, lr) for name, lr in (("fast", 0.5), ("slow", 0.001), ("wild", 1e30))]
    return latephase.finish(**quick(30, contestants=contestants, out=folder)), folder / "index.html"


class Text(HTMLParser):
    """The words of a page, its tables' rows, and whatever it would fetch."""

    def __init__(self, content):
        super().__init__()
        self.words, self.rows, self.fetched = "", [], []
        self.feed(content)
        self.words = re.sub(r"\s+", " ", self.words)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        for name, value in attrs:
            if name in ("src", "srcset", "href") and not value.startswith(("data:", "#")):
                self.fetched.append(value)

    def handle_data(self, data):
        self.words += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_the_page_says_what_the_report_says(finished):
    report, file = finished
    text = Text(file.read_text(encoding="utf-8"))
    assert report.verdict in text.words
    assert report.how_sure in text.words
    assert f'torch.load("{file.parent}/best.pt")' in text.words
    rows = {row[0]: row[1:] for row in text.rows if row}
    for row in report.standings():
        assert rows[row.name][0] == f"{row.steps:,}"
        assert rows[row.name][-1] == row.became
    assert rows["fast"][1] == f"{report.loss:.4g}"
    assert rows["the model as it was"][1] == f"{report.start:.4g}"
    assert rows["Budget"] == ["30 steps"]
    assert "PyTorch" in rows
    assert text.fetched == []


def test_names_and_remarks_cannot_steer_the_browser(finished):
    report, _ = finished
    events = [e | {"name": "<b>bold</b>"} if e["name"] == "fast" else e for e in report.events]
    content = page(dataclasses.replace(report, events=events, remarks=["<script>alert(1)</script>"], winner="<i>"))
    assert "<b>bold" not in content
    assert "<script>alert" not in content
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in content


def made(losses, start=1.0, **changes):
    looks = [
        {"event": "look", "name": "base", "spent": 2.0 + n, "loss": y, "steps": n, "taken": 1.0} for n, y in losses
    ]
    events = [
        {"event": "start", "name": "start", "spent": 0.0, "loss": start},
        {"event": "score", "name": "base", "spent": 1.0, "loss": start, "steps": 1, "taken": 0.5},
        {"event": "score", "name": "other", "spent": 1.0, "loss": start * 2, "steps": 1, "taken": 0.5},
        {
            "event": "out",
            "name": "other",
            "spent": 1.0,
            "loss": start * 2,
            "reason": "others had a lower held-out loss",
        },
        {"event": "winner", "name": "base", "spent": 1.5, "loss": start},
        *looks,
    ]
    loss = min(start, *(y for _, y in losses))
    return FinishReport(start, loss, "base", "base", (-0.1, 0.2), {}, events, 9.0, "seconds", **changes)


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([(1, 0.5), (2, 0.2)], "linear"), ([(1, 0.5), (2, 0.01)], "log"), ([(1, 0.5), (2, -0.01)], "linear")],
)
def test_the_axis_is_logarithmic_where_the_loss_falls_by_more_than_ten(losses, scale):
    with house_style():
        figure = course(made(losses), narrow=False)
    race, whole = figure.axes
    assert whole.get_yscale() == scale
    low, high = whole.get_ylim()
    assert low < losses[-1][1] < 1.0 < high
    assert [line.get_label() for line in whole.lines if not line.get_label().startswith("_")] == ["base", "other"]
    assert whole.get_xlabel() == race.get_xlabel() == "seconds of the budget"
    assert whole.get_ylabel() == "held-out loss"
    for axes in (race, whole):  # the race, up to where its winner was named, is shaded
        (shade,) = axes.patches
        assert shade.get_extents().transformed(axes.transData.inverted()).x1 == pytest.approx(1.5)


def test_a_loss_far_above_does_not_flatten_the_rest():
    with house_style():
        figure = course(made([(1, 1e12), (2, 0.7)]), narrow=True)
    assert figure.axes[-1].get_ylim()[1] < 10


def test_how_sure_says_what_the_interval_says():
    report = made([(1, 0.5)])
    assert "0.1 ahead of the runner-up" in report.how_sure
    assert "chance may have decided" in report.how_sure
    assert "chance may" not in dataclasses.replace(report, sureness=(-0.3, 0.2)).how_sure
    assert "one part tells no interval" in dataclasses.replace(report, sureness=(-0.3, float("inf"))).how_sure
    assert "was alone" in dataclasses.replace(report, sureness=None).how_sure
    assert "Nobody could go on" in dataclasses.replace(report, winner=None).how_sure


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_in_a_browser(finished, width, tmp_path):
    tools = browser()
    if tools.find_browser() is None:
        pytest.skip(f"no browser: none of {', '.join(tools.NAMES)} is installed")
    with tools.browse(tools.find_browser(), tmp_path / "profile") as tab:
        tab.open(finished[1], width)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        drawn = tab.evaluate("[...document.querySelectorAll('.panel canvas')].map(canvas => canvas.clientWidth)")
        tab.media(media="print")
        still = tab.evaluate("[...document.images].map(i => [i.naturalWidth, i.clientWidth, i.naturalHeight])")
    assert len(drawn) == 2
    assert min(drawn) > 300
    ((natural, client, height),) = still
    assert client > 300
    assert (natural < 1.1 * height) == (width == 390)
